"""Tuning the teacher itself."""
