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
def _of_sharded(array: jax.Array) -> jax.Array:
    """Of an array that lies on several machines, where it lies."""
    words = jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(array.shape):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        shape = [size if other == axis else 1 for other in range(array.ndim)]
        place = place + (jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(stride)).reshape(shape)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _of_local(array: np.ndarray) -> int:
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

    def number(leaf: Any) -> int:
        return _of_local(np.asarray(leaf)) if sharding.is_local(leaf) else int(_of_sharded(leaf))

    return {jax.tree_util.keystr(path): number(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def different(tree: Any, written: Mapping[str, int]) -> str:
    """The path of the first array of a tree that is not that of which `written` is the fingerprint; "" if all are."""
    present = of(tree)
    return next((path for path in sorted({*present, *written}) if present.get(path) != written.get(path)), "")
