"""Teacher answers on disk."""
