"""Timing: training, loading, decoding and distillation steps."""
