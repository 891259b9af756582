"""The options of a distillation, from YAML and flags."""
