"""JAX, from our StableHLO files, compiled by XLA for one batch size. int8 models multiply int8 by int8 into int32.

XLA's pool has as many threads as the process has cores; JAX_PLATFORMS chooses another device than the CPU.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lraqvit_jax.runtimes import Job, refuse_options

PACKAGE = "jax"
SUFFIX = "stablehlo"


def load(path: pathlib.Path, job: Job) -> Callable[[Any], Any]:
    import jax
    import jax.export

    refuse_options(PACKAGE, path, job)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    shape = jax.ShapeDtypeStruct((job.batch, job.size, job.size, 3), np.float32)
    compiled = jax.jit(exported.call).lower(shape).compile()
    del exported
    jax.clear_caches()  # They hold the weights once more.
    return lambda images: np.asarray(compiled(images))
