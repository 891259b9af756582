"""Pictures of puzzles and of how a model solves them step by step."""
