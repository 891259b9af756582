"""What evaluates the predictions of a whole test set."""
