"""Evaluating a student: perplexity and needle in a haystack."""
