"""What judges the predictions of a whole test set."""
