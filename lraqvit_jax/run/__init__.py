"""A work directory: its artefacts, checkpoints, results, metrics, lock."""
