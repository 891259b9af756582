"""From bytes to batches: numpy and torch.utils.data, no networks."""
