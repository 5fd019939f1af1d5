"""Distillation against the dense model, and training on labels."""
