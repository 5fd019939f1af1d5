"""Measurements: `python -m lraqvit_jax.bench NAME --config FILE --workdir DIR`. A module here offers `run`."""

import pkgutil


def names() -> list[str]:
    """Of all measurements."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
