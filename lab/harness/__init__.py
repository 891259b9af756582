"""Scores that everybody knows: a checkpoint under the tasks of lm-evaluation-harness."""
