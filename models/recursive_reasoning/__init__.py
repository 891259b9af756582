"""One file an architecture: its latents, its recursion, and the id that reference configs use; chains.py is a part of trm's."""
