"""Which channel each entry of a value is, followed through changes of layout.

An `Index` has the axes of the value; along those on which its entries do not depend it has the size one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Int

from lraqvit_jax.trace.views import shape_of

Index = Int[np.ndarray, "..."]
LARGEST = 1 << 24
"""Entries of an index, at most; beyond, nobody follows."""
SAME = (
    "copy",
    "copy_p",
    "convert_element_type",
    "stop_gradient",
    "optimization_barrier",
    "sharding_constraint",
    "name",
)


def moved(eqn: JaxprEqn, indices: Sequence[Index | None], constants: Sequence[Any] = ()) -> list[Index | None]:
    """The indices of an equation's outputs.

    Args:
        eqn: that moves entries and changes none.
        indices: of its activations; None where one is not known.
        constants: the values of its other operands, None where nobody knows.
    """
    known = [index for index in indices if index is not None]
    move = _MOVES.get(eqn.primitive.name, _computed)
    if len(known) < len(indices) or any(index.size > LARGEST for index in known):
        return [None] * len(eqn.outvars)
    return move(eqn, known, constants)


def equal(one: Index, other: Index) -> bool:
    """Whether two values have the same channels in the same places."""
    return fit([one, other]) and bool(np.all(one == other))


def fit(indices: Sequence[Index]) -> bool:
    """Whether they can be of values of one shape; of parts that are joined along an axis, such as the rotated half of a
    head and the rest of it, they need not."""
    if len({index.ndim for index in indices}) > 1:
        return False
    return all(
        len({size for size in along if size > 1}) < 2 for along in zip(*(one.shape for one in indices), strict=True)
    )


def _same(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    return [*indices]


def _transpose(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    return [indices[0].transpose(eqn.params["permutation"])]


def _squeeze(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    return [np.squeeze(indices[0], eqn.params["dimensions"])]


def _broadcast(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    shape = [1] * len(eqn.params["shape"])
    for axis, size in zip(eqn.params["broadcast_dimensions"], indices[0].shape, strict=True):
        shape[axis] = size
    return [indices[0].reshape(shape)]


def _reshape(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    index, before, after = indices[0], shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if 0 in before:
        return [None]
    whole, shape = list[int](), list[int]()
    for left, right in _groups(before, after):
        tracked = any(size > 1 for size in index.shape[left])
        whole += before[left] if tracked else [1] * len(before[left])
        shape += after[right] if tracked else [1] * len(after[right])
    return [np.broadcast_to(index, whole).reshape(shape) if math.prod(whole) <= LARGEST else None]


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Axes of one shape, and those of the other that they become: the shortest such runs."""
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        left, i = (before[i], i + 1) if i < len(before) else (1, i)
        right, j = (after[j], j + 1) if j < len(after) else (1, j)
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        yield slice(first, i), slice(second, j)


def _slice(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    params, index = eqn.params, indices[0]
    steps = params["strides"] or (1,) * index.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, index.shape, strict=True)
    return [index[tuple(slice(None) if size == 1 else slice(*bound) for *bound, size in bounds)]]


def _split(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    axis, index = eqn.params["axis"], indices[0]
    if index.shape[axis] == 1:
        return [index] * len(eqn.outvars)
    return [*np.split(index, np.cumsum(eqn.params["sizes"])[:-1], axis)]


def _concatenate(eqn: JaxprEqn, indices: Sequence[Index], _: Any) -> list[Index | None]:
    axis = eqn.params["dimension"]
    others = [max(sizes) for sizes in zip(*(index.shape for index in indices), strict=True)]
    parts = []
    for atom, index in zip(eqn.invars, indices, strict=True):
        shape = [*others]
        shape[axis] = shape_of(atom)[axis]
        parts.append(np.broadcast_to(index, shape))
    return [np.concatenate(parts, axis)]


def _dynamic_slice(eqn: JaxprEqn, indices: Sequence[Index], constants: Any) -> list[Index | None]:
    sizes, index = eqn.params["slice_sizes"], indices[0]
    whole = zip(sizes, shape_of(eqn.invars[0]), index.shape, strict=True)
    if all(size == full or tracked == 1 for size, full, tracked in whole):
        return [index]
    return _computed(eqn, indices, constants)


def _computed(eqn: JaxprEqn, indices: Sequence[Index], constants: Sequence[Any]) -> list[Index | None]:
    """What the primitive makes of the whole index, as of any array of integers."""
    shape = shape_of(eqn.invars[0])
    if len(indices) != 1 or len(constants) + 1 != len(eqn.invars) or any(value is None for value in constants):
        return [None] * len(eqn.outvars)
    if math.prod(shape) > LARGEST or eqn.primitive.multiple_results:
        return [None] * len(eqn.outvars)
    params = dict(eqn.params) | ({"fill_value": -1} if "fill_value" in eqn.params else {})
    with jax.ensure_compile_time_eval():
        whole = np.ascontiguousarray(np.broadcast_to(indices[0], shape), np.int32)
        made = np.asarray(eqn.primitive.bind(whole, *constants, **params))
    return [made if np.all(made >= 0) else None]


_MOVES: dict[str, Callable[[JaxprEqn, Sequence[Index], Any], list[Index | None]]] = {
    **dict.fromkeys((*SAME, "name"), _same),
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
}
MOVING = (*_MOVES, "gather", "rev", "expand_dims")
"""Primitives that move entries and change none."""


def axes_first(index: Index, *axes: Sequence[int]) -> Index:
    """The index with these groups of axes in this order."""
    return index.transpose([axis for group in axes for axis in group])


def flat(index: Index | None, axes: Sequence[int], shape: Sequence[int]) -> Int[np.ndarray, " n"] | None:
    """The channel at each place of some axes, flattened in the order given; None where other axes matter too."""
    if index is None or any(size > 1 for axis, size in enumerate(index.shape) if axis not in axes):
        return None
    rest = [axis for axis in range(index.ndim) if axis not in axes]
    moved_axes = axes_first(index, axes, rest).reshape([index.shape[axis] for axis in axes])
    return np.broadcast_to(moved_axes, [shape[axis] for axis in axes]).reshape(-1)
