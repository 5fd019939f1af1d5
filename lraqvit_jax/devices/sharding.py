"""Meshes and where every array lives: logical axis names -> mesh axes (`data`, `fsdp`, `tensor`)."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.devices import ShardingRules

AXES = ("data", "fsdp", "tensor")
RULES: Mapping[str, tuple[str, ...]] = dataclasses.asdict(ShardingRules())
TOGETHER = (
    ("batch", "tokens"),
    ("patch", "embed"),
    ("embed", "heads"),
    ("embed", "mlp"),
    ("embed", "classes"),
    ("embed", "rank"),
    *(("inner_rank", name) for name in ("patch", "heads", "mlp", "classes")),
)
"""Logical axes that meet in one array: activations, kernels, and the two factors of a pair."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices in the axes `data`, `fsdp`, `tensor`, and how arrays lie on them.

    Attributes:
        devices: JAX's mesh; an abstract one where only shapes are asked for.
        rules: pairs of logical axis and the mesh axes over which it is spread.
    """

    devices: jax.sharding.Mesh | AbstractMesh
    rules: tuple[tuple[str, tuple[str, ...]], ...] = tuple(RULES.items())

    @property
    def shape(self) -> Mapping[str, int]:
        """Devices along each axis."""
        return self.devices.shape

    def size(self, axes: Sequence[str]) -> int:
        """Devices along these axes together."""
        return math.prod(self.shape[axis] for axis in axes)

    def spread(self, name: str) -> int:
        """Parts into which a logical axis is cut."""
        return self.size(dict(self.rules)[name])


def check_rules(rules: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError for an axis that does not exist, and for a mesh axis that would be used twice in one array."""
    for name, axes in rules.items():
        if name not in RULES:
            raise UserError(f"sharding has a rule for {name!r}, which is not a logical axis; {nearest(name, RULES)}")
        for axis in axes:
            if axis not in AXES:
                raise UserError(
                    f"sharding.{name} names {axis!r}, which is not an axis of the mesh; {nearest(axis, AXES)}"
                )
            if list(axes).count(axis) > 1:
                raise UserError(f"sharding.{name} names {axis!r} twice; name each axis of the mesh once.")
    for name, other in TOGETHER:
        if both := sorted(set(rules.get(name, ())) & set(rules.get(other, ()))):
            raise UserError(
                f"sharding.{name} and sharding.{other} both use the mesh axis {both[0]!r}, and some arrays have both; "
                "take it out of one of them."
            )


def make_mesh(
    sizes: Mapping[str, int],
    devices: Sequence[jax.Device] | None = None,
    rules: Mapping[str, Sequence[str]] = RULES,
) -> Mesh:
    """Builds the mesh of axes `data`, `fsdp`, `tensor`.

    Args:
        sizes: devices along each axis; one of them may be -1, "all that remain".
        devices: default all.
        rules: mesh axes of each logical axis.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or a rule does not fit.
    """
    check_rules(rules)
    devices = list(jax.devices()) if devices is None else list(devices)
    shape = [sizes[axis] for axis in AXES]
    fixed = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or fixed <= 0 or len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
        text = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
        raise UserError(f"The mesh {text} does not fit {len(devices)} devices; its sizes must multiply to that number.")
    shape = [len(devices) // fixed if size == -1 else size for size in shape]
    made = jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    return Mesh(made, _frozen(rules))


def abstract_mesh(sizes: Mapping[str, int], rules: Mapping[str, Sequence[str]] = RULES) -> Mesh:
    """A mesh of devices that are not there, for shapes and bytes; arguments as in `make_mesh`, without -1."""
    check_rules(rules)
    shape = tuple(sizes[axis] for axis in AXES)
    if min(shape) < 1:
        raise UserError(f"The mesh {dict(sizes)} is of devices that are not here; give every axis a size above 0.")
    return Mesh(AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES)), _frozen(rules))


def _frozen(rules: Mapping[str, Sequence[str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((name, tuple(rules.get(name, ()))) for name in RULES)


def one_device(backend: str | None = None) -> Mesh:
    """A mesh of this process's first device; of its first one of a backend such as "cpu", where that is named."""
    return make_mesh(dict.fromkeys(AXES, 1), jax.local_devices(backend=backend)[:1])


def check_batch(mesh: Mesh, batch_size: int, field: str = "batch_size", micro_batches: int = 1) -> None:
    """Raises UserError where a batch does not divide over the data-parallel devices and then into micro-batches."""
    ways = mesh.spread("batch")
    parts = ways * micro_batches
    if batch_size <= 0 or batch_size % parts:
        up = max(parts, -(-batch_size // parts) * parts)
        over = f"{ways} devices" + (f" times {micro_batches} micro-batches" if micro_batches > 1 else "")
        raise UserError(f"{field} is {batch_size}, which the mesh cannot divide over {over}; {up} would do.")


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """Makes the mesh and the logical rules current."""
    current: Any = jax.sharding.use_abstract_mesh if isinstance(mesh.devices, AbstractMesh) else jax.set_mesh
    with current(mesh.devices), nn.logical_axis_rules(_flax(mesh)):
        yield


def _flax(mesh: Mesh) -> list[tuple[str, tuple[str, ...] | None]]:
    """The rules as Flax writes them."""
    return [(name, axes or None) for name, axes in mesh.rules]


def is_local(leaf: Any) -> bool:
    """Whether this process has all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh.devices, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Rows of the first axis spread over the data-parallel devices."""
    return NamedSharding(mesh.devices, PartitionSpec(dict(mesh.rules)["batch"] or None))


def micro_batches(batch: Mapping[str, jax.Array], count: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Cuts a batch, (rows, ...) each, into (count, rows / count, ...), every device its own rows: nothing moves."""
    rows = PartitionSpec(None, *over_batch(mesh).spec)

    def cut(value: jax.Array) -> jax.Array:
        parts = value.reshape(-1, count, *value.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh.devices, rows))

    return {name: cut(value) for name, value in batch.items()}


def bytes_per_device(abstract: Any) -> int:
    """Bytes of the arrays of a tree that each device holds."""
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def abstract_params(model: nn.Module, image_size: int, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model's parameters, nothing allocated.

    A dimension that its mesh axes do not divide is left whole; see `left_whole`.
    """

    def place(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        axes = [axis if size % _parts(mesh, axis) == 0 else None for size, axis in zip(leaf.shape, spec, strict=False)]
        where = NamedSharding(mesh.devices, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, *_declared(model, image_size, mesh))


def left_whole(model: nn.Module, image_size: int, mesh: Mesh) -> int:
    """Bytes of the parameters that have a dimension which a rule would spread and the mesh does not divide."""

    def size(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec) -> int:
        odd = any(size % _parts(mesh, axis) for size, axis in zip(leaf.shape, spec, strict=False))
        return odd * leaf.size * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, *_declared(model, image_size, mesh))))


def _declared(model: nn.Module, image_size: int, mesh: Mesh) -> tuple[Any, Any]:
    """Shapes of the parameters, and where the rules want them."""
    boxed = _boxed(model, image_size)
    return _unbox(boxed), nn.logical_to_mesh(nn.get_partition_spec(boxed), _flax(mesh))


@functools.lru_cache(maxsize=32)
def _boxed(model: nn.Module, image_size: int) -> Any:
    """Shapes of the parameters in Flax's boxes, which name the axes; tracing a model takes a second or so."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with nn.logical_axis_rules(()):
        return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def _parts(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts an entry of a PartitionSpec cuts."""
    return mesh.size((axes,) if isinstance(axes, str) else axes or ())


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


def rows_of_process(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process supplies, sorted: all that its own devices hold.

    Several processes supply the same rows where the devices of both hold them, as along an axis `tensor` over hosts.
    """
    parts = over_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in parts]))


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins what the processes supply, each its `rows_of_process`, into global arrays, sharded over the batch."""
    ways = mesh.spread("batch")
    share = len(rows_of_process(mesh, ways))

    def place(value: Any) -> jax.Array:
        size = len(value) * ways // share
        rows = rows_of_process(mesh, size)

        def part(index: Any) -> Any:
            first, stop, _ = index[0].indices(size)
            start = int(np.searchsorted(rows, first))
            return value[start : start + stop - first]

        return jax.make_array_from_callback((size, *value.shape[1:]), over_batch(mesh), part)

    return {name: place(value) for name, value in batch.items()}
