"""Checkpoints: saved atomically, loaded with checks, found in a run directory."""
