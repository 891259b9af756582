"""The only modules that name concrete datasets, models, tasks and optimizers."""
