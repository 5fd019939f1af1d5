"""What a value of a jaxpr is, as far as parameters go: a part of one in another layout, something made of several, a
constant, or an activation, which depends on the batch."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

Step = Callable[[Any], Any]

SMALL = 64
"""Entries up to which a constant is computed: indices and scales."""


def shape_of(atom: Any) -> tuple[Any, ...]:
    """Of a variable or literal of a jaxpr."""
    return tuple(atom.aval.shape)


def dtype_of(atom: Any) -> Any:
    """Likewise."""
    return atom.aval.dtype


def is_small(shape: tuple[Any, ...]) -> bool:
    """Whether a constant of that shape is computed; none is whose shape depends on the batch's."""
    return all(isinstance(size, int) for size in shape) and math.prod(shape) <= SMALL


@dataclasses.dataclass(frozen=True)
class Known:
    """A constant; `value` is None where nobody needs to know it."""

    value: Any = None


@dataclasses.dataclass(frozen=True)
class View:
    """A leaf of the parameters, or a part of it, in another layout or another precision, or times a scalar.

    Attributes:
        leaf: its path.
        shape: of the view.
        part: which part, as in NumPy, such as "[3]" of stacked layers; "" is all.
        steps: from the leaf to the view, one after another, of arrays of NumPy and JAX alike.
        moves: whether the steps move entries alone, so that the view is their permutation.
    """

    leaf: str
    shape: tuple[int, ...]
    part: str = ""
    steps: tuple[Step, ...] = ()
    moves: bool = True

    @property
    def path(self) -> str:
        return self.leaf + self.part

    def then(self, step: Step, shape: tuple[int, ...], part: str = "", moves: bool = True) -> "View":
        return View(self.leaf, shape, self.part + part, (*self.steps, step), self.moves and moves)

    def of(self, leaf: Any) -> Any:
        """The view of that leaf's value."""
        for step in self.steps:
            leaf = step(leaf)
        return leaf


@dataclasses.dataclass(frozen=True)
class Mixed:
    """What is made of parameters otherwise; `by` is the primitive that made it."""

    leaves: frozenset[str]
    by: str


@dataclasses.dataclass(frozen=True)
class Activation:
    """What depends on the batch.

    Attributes:
        raw: whether no parameter has touched it.
        origin: path of the site of which it is the output, in another layout or with a bias; "" for none.
        sites: paths of all sites that it depends on.
        role: see `trace.attention`.
    """

    raw: bool = False
    origin: str = ""
    sites: frozenset[str] = frozenset()
    role: Any = None


Value = Known | View | Mixed | Activation


def leaves_of(value: Value) -> frozenset[str]:
    if isinstance(value, View):
        return frozenset([value.leaf])
    return value.leaves if isinstance(value, Mixed) else frozenset()


def joined(values: list[Value], by: str) -> Value:
    """What a primitive that is nothing special makes of its operands."""
    acts = [value for value in values if isinstance(value, Activation)]
    leaves = frozenset[str]().union(*map(leaves_of, values))
    if acts:
        sites = frozenset[str]().union(*(act.sites for act in acts))
        return Activation(raw=not leaves and all(act.raw for act in acts), sites=sites)
    return Mixed(leaves, by) if leaves else Known()


def moved(eqn: JaxprEqn, values: list[Value]) -> Value | None:
    """The view that an equation makes of a view; None where it makes something else of it."""
    found = [value for value in values if isinstance(value, View)]
    others = [value.value for value in values if isinstance(value, Known)]
    move = MOVES.get(eqn.primitive.name)
    if move is None or len(found) != 1 or len(found) + len(others) != len(values):
        return None
    return move(eqn, found[0], others)


def _same(eqn: JaxprEqn, view: View, others: list[Any]) -> View | None:
    return None if others else dataclasses.replace(view, shape=shape_of(eqn.outvars[0]))


def _reshape(eqn: JaxprEqn, view: View, others: list[Any]) -> View | None:
    shape = shape_of(eqn.outvars[0])
    if others or math.prod(shape) != math.prod(view.shape):
        return None
    return view.then(lambda x: x.reshape(shape), shape)


def _transpose(eqn: JaxprEqn, view: View, others: list[Any]) -> View:
    order = eqn.params["permutation"]
    return view.then(lambda x: x.transpose(order), shape_of(eqn.outvars[0]))


def _cast(eqn: JaxprEqn, view: View, others: list[Any]) -> View | None:
    dtype = eqn.params["new_dtype"]
    return (
        view.then(lambda x: x.astype(dtype), view.shape, moves=False) if jnp.issubdtype(dtype, jnp.floating) else None
    )


def _slice(eqn: JaxprEqn, view: View, others: list[Any]) -> View:
    params = eqn.params
    steps = params["strides"] or (1,) * len(view.shape)
    return _part(view, list(zip(params["start_indices"], params["limit_indices"], steps, strict=True)))


def _dynamic_slice(eqn: JaxprEqn, view: View, others: list[Any]) -> View | None:
    if any(start is None for start in others) or len(others) != len(view.shape):
        return None
    sizes = zip(others, view.shape, eqn.params["slice_sizes"], strict=True)
    bounds = [(min(max(int(start), 0), size - count), count) for start, size, count in sizes]
    return _part(view, [(start, start + count, 1) for start, count in bounds])


def _part(view: View, bounds: list[tuple[int, int, int]]) -> View:
    index = tuple(slice(*bound) for bound in bounds)
    shape = tuple(len(range(*bound)) for bound in bounds)
    return view.then(lambda x: x[index], shape, _written(bounds, view.shape))


def _scaled(eqn: JaxprEqn, view: View, others: list[Any]) -> View | None:
    """Times a scalar, or divided by one."""
    divides = eqn.primitive.name == "div"
    if len(others) != 1 or others[0] is None or np.size(others[0]) != 1 or shape_of(eqn.outvars[0]) != view.shape:
        return None
    if divides and math.prod(shape_of(eqn.invars[1])) != 1:
        return None
    factor = np.asarray(others[0]).reshape(())
    return view.then(lambda x: x / factor if divides else x * factor, view.shape, moves=False)


MOVES: dict[str, Callable[[JaxprEqn, View, list[Any]], View | None]] = {
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint", "name"), _same),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims", "broadcast_in_dim"), _reshape),
    "transpose": _transpose,
    "convert_element_type": _cast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    **dict.fromkeys(("mul", "div"), _scaled),
}
"""What makes a view of a view, by the primitive: its equation, the view, and the values of its other operands."""
LAYOUT = tuple(name for name in MOVES if name not in ("mul", "div", "dynamic_slice", "slice"))
"""Primitives behind which a product's output is still that product's."""


def layer(view: View, index: int) -> View:
    """One layer of a stacked leaf."""
    return view.then(lambda x: x[index], view.shape[1:], f"[{index}]")


def at(view: View, axes: Sequence[int], place: Sequence[int]) -> View:
    """A view at a place along some of its axes."""
    where = dict(zip(axes, place, strict=True))
    bounds = [
        (where[axis], where[axis] + 1, 1) if axis in where else (0, size, 1) for axis, size in enumerate(view.shape)
    ]
    shape = tuple(size for axis, size in enumerate(view.shape) if axis not in where)
    return _part(view, bounds).then(lambda x: x.reshape(shape), shape)


def _written(bounds: list[tuple[int, int, int]], shape: tuple[int, ...]) -> str:
    """A slice as NumPy writes it; "" where it is all."""
    parts = []
    for (start, stop, step), size in zip(bounds, shape, strict=True):
        stride = f":{step}" if step != 1 else ""
        whole = (start, stop, step) == (0, size, 1)
        parts.append(":" if whole else str(start) if stop == start + 1 else f"{start}:{stop}{stride}")
    while parts and parts[-1] == ":":
        parts.pop()
    return f"[{','.join(parts)}]" if parts else ""
