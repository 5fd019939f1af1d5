"""A number for each array of a tree, to tell damaged files from whole ones.

The sum of the array's words, each times an odd number that says its place, modulo 2**32: exact in any order, so the
same on any mesh, and another one for any change of one element.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lraqvit_jax.devices import sharding

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
CHUNK = 2**20


@jax.jit
def _spread(array: jax.Array) -> jax.Array:
    """Of an array that lies on several machines, where it lies."""
    words = jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(array.shape):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        shape = [size if other == axis else 1 for other in range(array.ndim)]
        place = place + (jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(stride)).reshape(shape)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _here(array: np.ndarray) -> int:
    """Of an array on this machine: nothing to compile."""
    words = np.ascontiguousarray(array).reshape(-1).view(WORDS[array.itemsize])
    odd, total = np.arange(1, 2 * CHUNK, 2, dtype=np.uint32), 0
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].astype(np.uint32)
        places = odd[: len(part)] + np.uint32(2 * start % 2**32)
        total += int(np.sum(part * places, dtype=np.uint32))
    return total % 2**32


def of(tree: Any) -> dict[str, int]:
    """{path: number} of every array of a tree of 8, 16 and 32-bit arrays, on any mesh; every process must ask."""

    def one(leaf: Any) -> int:
        return _here(np.asarray(leaf)) if sharding.is_here(leaf) else int(_spread(leaf))

    return {jax.tree_util.keystr(path): one(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def different(tree: Any, wanted: Mapping[str, int]) -> str:
    """Where a tree is not what `wanted` is of, the path of the first array that is not; "" where it is."""
    found = of(tree)
    return next((path for path in sorted({*found, *wanted}) if found.get(path) != wanted.get(path)), "")
