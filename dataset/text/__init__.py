"""Conversations in memory: encoded, packed into rows, read by a cursor that can resume."""
