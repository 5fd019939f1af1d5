"""What users call from Python: compress a model, load one, and what one does with it."""
