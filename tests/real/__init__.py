"""Real models as plain JAX functions, and what compression does to them: `python -m tests.real --help`.

A benchmark, which pytest does not collect: weights and data are not part of the project.
"""
