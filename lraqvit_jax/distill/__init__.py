"""Block-level distillation."""
