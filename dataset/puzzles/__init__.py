"""Puzzles: the on-disk format, its reader, and the sources that builders draw from."""
