"""Replies from a checkpoint: decoding, sampling, early exits, conversations."""
