"""Entry points of the distillation."""
