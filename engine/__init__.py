"""The one training engine: training, evaluation, resuming and generation for every kind of run."""
