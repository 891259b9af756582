"""The loop: steps, optimizers, evaluation, tracking."""
