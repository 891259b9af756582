"""Composes and carries out a distillation."""
