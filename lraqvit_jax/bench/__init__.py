"""Measurements: `python -m lraqvit_jax.bench NAME --config FILE --workdir DIR`. A module here offers `run`."""
