"""What a training step is: the protocol and one task per way of training."""
