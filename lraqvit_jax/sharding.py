"""Meshes and where every array lives: logical axis names -> mesh axes (`data`, `fsdp`, `tensor`)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lraqvit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
RULES = (
    ("batch", ("data", "fsdp")),
    ("tokens", None),
    ("patch", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("rank", None),
    ("classes", None),
)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of axes `data`, `fsdp`, `tensor`.

    Args:
        sizes: devices along each axis; one of them may be -1, "all that remain".
        devices: default all.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    shape = [sizes[axis] for axis in AXES]
    known = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or known <= 0 or len(devices) % known or (-1 not in shape and known != len(devices)):
        text = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
        raise UserError(f"The mesh {text} does not fit {len(devices)} devices; its sizes must multiply to that number.")
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def one_device() -> Mesh:
    """A mesh of this host's first device."""
    return make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])


def check_batch(mesh: Mesh, batch_size: int, field: str = "batch_size") -> None:
    """Raises UserError where a batch does not divide over the data-parallel devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size <= 0 or batch_size % ways:
        up = max(ways, -(-batch_size // ways) * ways)
        raise UserError(f"{field} is {batch_size}, which the mesh cannot divide over {ways} devices; {up} would do.")


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """Makes the mesh and the logical rules current."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Rows of the first axis spread over the data-parallel devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def abstract_params(model: nn.Module, image_size: int, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model's parameters, nothing allocated.

    A dimension that its mesh axis does not divide is left whole.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with nn.logical_axis_rules(()):
        boxed = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)

    def place(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        axes = [
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for size, axis in zip(leaf.shape, (*spec, *[None] * leaf.ndim), strict=False)
        ]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(place, _unbox(boxed), specs)


def init_params(model: nn.Module, key: jax.Array, image_size: int, abstract: Any) -> Any:
    """Random parameters, made where they live: nothing is ever whole on one device."""

    def init(key: jax.Array) -> Any:
        with nn.logical_axis_rules(()):
            return _unbox(model.init(key, jnp.zeros((1, image_size, image_size, 3)))["params"])

    return jax.jit(init, out_shardings=shardings(abstract))(key)


def _unbox(boxed: Any) -> Any:
    """Drops Flax's metadata boxes. Unlike `nn.meta.unbox`, adds no sharding constraint."""
    return jax.tree.map(
        lambda leaf: leaf.value if nn.meta.is_axis_metadata(leaf) else leaf, boxed, is_leaf=nn.meta.is_axis_metadata
    )


def shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def put(tree: Any, abstract: Any) -> Any:
    """Places host arrays as `abstract` says."""
    return jax.tree.map(
        lambda value, leaf: jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: np.asarray(value)[index]
        ),
        tree,
        abstract,
    )


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins every host's rows into global arrays, sharded over the batch."""
    return {name: jax.make_array_from_process_local_data(over_batch(mesh), value) for name, value in batch.items()}
