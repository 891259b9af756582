"""The options of a run: typed, checked all at once, with classes resolved by name."""
