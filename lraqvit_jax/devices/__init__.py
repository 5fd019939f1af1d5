"""Meshes, processes, and where arrays live."""
