"""The only rooms that name concrete datasets, models, tasks and optimizers."""
