"""StableHLO, three ways, the weights inside.

`.stablehlo` is what jax.export serializes: any batch size, several platforms; jax and flatbuffers run it. jax promises
that releases up to six months newer read it, and by its calling-convention version it says which do.

`.mlirbc` and `.mlir` are the module alone, of one platform and one image: `main(images (1, size, size, 3) float32) ->
(1, classes) float32`. The first is StableHLO's portable artefact, bytecode whose head names the version of StableHLO
that it is written in (`version`); OpenXLA promises that it is read for five years, and by what is up to two years
older. The second is the same in text, twice as large, for people and for compilers that ask for it; nobody promises
anything of text. PJRT (`load_module`), IREE and others compile them.
"""

import contextlib
import importlib.metadata
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest, reason

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
    (batch,) = jax.export.symbolic_shape("batch")
    exported = _exported(model, params, (batch, image_size, image_size, 3), platforms)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, bytes(exported.serialize()))
    return exported


def export_module(model: nn.Module, params: Any, image_size: int, platform: str, path: pathlib.Path) -> None:
    """Writes the module for one image: `.mlirbc` as a portable artefact, `.mlir` as text.

    Args:
        model: any form.
        params: its parameters, on one device or on the host.
        image_size: side of the input.
        platform: "cpu", ...; these models are lowered alike for all.
        path: of the file; its suffix says which.
    """
    exported = _exported(model, params, (1, image_size, image_size, 3), [platform])
    text = path.suffix == ".mlir"
    content = exported.mlir_module().encode() if text else exported.mlir_module_serialized
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, content)


def _exported(model: nn.Module, params: Any, shape: Sequence[Any], platforms: Sequence[str]) -> jax.export.Exported:
    constants = jax.tree.map(np.asarray, params)
    apply = jax.jit(model.apply)  # Of its own: nothing of the constants is computed, and stored, while tracing.
    run = jax.jit(lambda images: apply({"params": constants}, images))
    with without_locations():
        return jax.export.export(run, platforms=tuple(platforms))(jax.ShapeDtypeStruct(tuple(shape), jnp.float32))


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


def version(path: pathlib.Path) -> tuple[int, int, int]:
    """The version of StableHLO that a portable artefact is written in.

    Raises:
        UserError: the file is none.
    """
    with path.open("rb") as file:
        head = re.match(rb"ML\xefR.StableHLO_v(\d+)\.(\d+)\.(\d+)\0", file.read(64), re.DOTALL)
    if not head:
        raise UserError(f"{path} is no portable artefact of StableHLO; name a .mlirbc file.")
    major, minor, patch = map(int, head.groups())
    return major, minor, patch


def load_module(path: pathlib.Path) -> Callable[[Any], np.ndarray]:
    """Compiles a module by PJRT, on JAX's default device: a function from images (any number) to logits.

    jaxlib reads portable artefacts and text alike. `examples/classify.py` does this without the package.

    Raises:
        UserError: jaxlib cannot read or compile it.
    """
    from jax.extend import backend
    from jaxlib import xla_client

    device = jax.devices()[0]
    try:
        devices = xla_client.DeviceList((device,))
        options = xla_client.CompileOptions()
        program = backend.get_backend().compile_and_load(path.read_bytes(), devices, options)
    except Exception as error:
        raise UserError(
            f"{path} cannot be compiled by jaxlib {importlib.metadata.version('jaxlib')} ({reason(error)}); export it "
            "again, or take a newer jaxlib."
        ) from error

    def run(images: Any) -> np.ndarray:
        outputs = []
        for image in np.asarray(images, np.float32):
            result = program.execute_sharded([jax.device_put(image[None], device)])
            ((output,),) = result.disassemble_into_single_device_arrays()
            outputs.append(np.asarray(output)[0])
        return np.stack(outputs)

    return run
