"""StableHLO by jax.export: one file with the weights inside, for any batch size; jax and flatbuffers run it."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def check(platforms: Sequence[str]) -> None:
    """UserError for a platform that JAX does not export for, or where none is this process's, to check the file on."""
    for name in platforms:
        if name not in PLATFORMS:
            raise UserError(f"export.platforms has {name!r}; {nearest(name, PLATFORMS)}")
    backend = jax.default_backend()
    own = ("cuda", "rocm") if backend == "gpu" else (backend,)
    if not {*own} & {*platforms}:
        raise UserError(
            f"export.platforms is {tuple(platforms)!r}; add {own[0]!r}, on which each file is checked here."
        )


def export(
    model: nn.Module, params: Any, image_size: int, platforms: Sequence[str], path: pathlib.Path
) -> jax.export.Exported:
    """Writes `images (batch, size, size, 3) float32 -> logits (batch, classes) float32`, batch free.

    Args:
        model: any form; int8 kernels stay int8 in the file.
        params: its parameters, on one device or on the host.
        image_size: side of the input.
        platforms: "cpu", "cuda", "tpu", ...
        path: of the file.
    """
    constants = jax.tree.map(np.asarray, params)
    apply = jax.jit(model.apply)  # Of its own: nothing of the constants is computed, and stored, while tracing.
    run = jax.jit(lambda images: apply({"params": constants}, images))
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    with without_locations():
        exported = jax.export.export(run, platforms=tuple(platforms))(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, bytes(exported.serialize()))
    return exported


@contextlib.contextmanager
def without_locations() -> Iterator[None]:
    """Leaves out of the file where in this machine's files each operation was written."""
    field = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, field)
    jax.config.update(field, 0)
    try:
        yield
    finally:
        jax.config.update(field, before)


def load(path: pathlib.Path) -> Any:
    """Reads a file back as a function from images to logits. This is all that a user needs."""
    return jax.export.deserialize(bytearray(path.read_bytes())).call
