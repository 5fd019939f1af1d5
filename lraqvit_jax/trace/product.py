"""One equation that multiplies parameters and activations, as the product of rows and a kernel (m, n)."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from lraqvit_jax.trace.views import Step, shape_of

MOST = 256
"""Kernels side by side in one product, at most."""
PRODUCTS = ("dot_general", "conv_general_dilated")


@dataclasses.dataclass(frozen=True)
class Product:
    """`write(read(activation) @ arrange(weight))` is what the equation computes.

    Attributes:
        side: which operand is the weight.
        rows: how many.
        features_in: m.
        features_out: n.
        inner: axes of the activation that are summed over, in the order of the kernel's rows; none of a convolution.
        outer: axes of the output that come from the kernel, in the order of its columns.
        arrange: the weight as a kernel (m, n); of arrays of NumPy and JAX alike.
        read: the activation as rows (rows, m).
        write: rows (rows, n) as the equation's output.
    """

    side: int
    rows: int
    features_in: int
    features_out: int
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    arrange: Step
    read: Step
    write: Step

    @property
    def macs(self) -> int:
        return self.rows * self.features_in * self.features_out


def of(eqn: JaxprEqn, side: int) -> Product | str:
    """The product of an equation whose operand `side` is made of parameters; a sentence where it is none of ours. Of
    kernels side by side it is the product of each; see `kernels`."""
    if eqn.primitive.name == "dot_general":
        return _dot(eqn, side)
    return _windows(eqn) if side == 1 else "is convolved as if it were the image"


def kernels(eqn: JaxprEqn, side: int) -> list[tuple[int, ...]]:
    """Where along the batch axes of a product each of its kernels is: those of experts, or of blocks along a diagonal.
    One alone, at (), where there is no such axis."""
    if eqn.primitive.name != "dot_general":
        return [()]
    shape, batched = shape_of(eqn.invars[side]), eqn.params["dimension_numbers"][1][side]
    return list(itertools.product(*(range(shape[axis]) for axis in batched)))


def one_of(operand: Any, axes: Sequence[int], place: Sequence[int]) -> Any:
    """An operand at a place along its batch axes."""
    index: list[Any] = [slice(None)] * operand.ndim
    for axis, number in zip(axes, place, strict=True):
        index[axis] = number
    return operand[tuple(index)]


def _dot(eqn: JaxprEqn, side: int) -> Product | str:
    contracted, batched = eqn.params["dimension_numbers"]
    if not contracted[side]:
        return "is multiplied without a sum"
    if (count := len(kernels(eqn, side))) > MOST:
        return f"is {count:,} kernels, one for each part of what they multiply"
    weight, inner = _without(shape_of(eqn.invars[side]), batched[side], contracted[side])
    other, outer = _without(shape_of(eqn.invars[1 - side]), batched[1 - side], contracted[1 - side])
    inner, outer = zip(*sorted(zip(inner, outer, strict=True)), strict=True)
    free = tuple(axis for axis in range(len(weight)) if axis not in inner)
    rows = tuple(axis for axis in range(len(other)) if axis not in outer)
    m, n = math.prod(weight[axis] for axis in inner), math.prod(weight[axis] for axis in free)
    row_shape, free_shape = tuple(other[axis] for axis in rows), tuple(weight[axis] for axis in free)

    def write(y: Any) -> Any:
        y = y.reshape(row_shape + free_shape)
        if side == 1:
            return y
        return jnp.moveaxis(y, range(len(row_shape), y.ndim), range(len(free_shape)))

    before = len(row_shape) if side == 1 else 0
    return Product(
        side,
        math.prod(row_shape),
        m,
        n,
        outer,
        tuple(range(before, before + len(free))),
        lambda w: w.transpose(inner + free).reshape(m, n),
        lambda x: x.transpose(rows + outer).reshape(-1, m),
        write,
    )


def _without(
    shape: tuple[int, ...], batched: Sequence[int], contracted: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape without its batch axes, and which of those that are left are contracted."""
    left = [axis for axis in range(len(shape)) if axis not in batched]
    return tuple(shape[axis] for axis in left), tuple(left.index(axis) for axis in contracted)


def _windows(eqn: JaxprEqn) -> Product | str:
    """A convolution: a product of its windows, in rows (batch * places, window * channels)."""
    params, image, kernel = eqn.params, shape_of(eqn.invars[0]), shape_of(eqn.invars[1])
    numbers = params["dimension_numbers"]
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return "is convolved in groups"
    if any(step != 1 for step in params["lhs_dilation"]):
        return "is convolved with gaps between pixels"
    batch, channels, n = image[numbers.lhs_spec[0]], kernel[numbers.rhs_spec[1]], kernel[numbers.rhs_spec[0]]
    window = tuple(kernel[axis] for axis in numbers.rhs_spec[2:])
    counts = tuple(shape_of(eqn.outvars[0])[axis] for axis in numbers.out_spec[2:])
    edges, strides, gaps = params["padding"], params["window_strides"], params["rhs_dilation"]
    m, dims = math.prod(window) * channels, len(window)
    tiled = tuple(strides) == window and set(gaps) == {1} and not any(sum(map(abs, pad)) for pad in edges)

    def read(x: Any) -> Any:
        x = x.transpose(numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
        return (tiles if tiled else overlapping)(x).reshape(-1, m)

    def tiles(x: Any) -> Any:
        x = x[(slice(None), *(slice(count * size) for count, size in zip(counts, window, strict=True)))]
        cut = [part for pair in zip(counts, window, strict=True) for part in pair]
        order = (0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
        return x.reshape(batch, *cut, channels).transpose(order)

    def overlapping(x: Any) -> Any:
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in edges), (0, 0, 0)])
        shown = []
        for place in itertools.product(*map(range, window)):
            along = zip(place, counts, strides, gaps, strict=True)
            cut = (slice(at * gap, at * gap + (count - 1) * step + 1, step) for at, count, step, gap in along)
            shown.append(x[(slice(None), *cut)])
        return jnp.stack(shown, -2)

    def write(y: Any) -> Any:
        y = y.reshape(batch, *counts, n)
        order = [0] * (dims + 2)  # of our axes batch, places, features, by the output's axis
        for ours, axis in zip((0, dims + 1, *range(1, dims + 1)), numbers.out_spec, strict=True):
            order[axis] = ours
        return y.transpose(order)

    def arrange(w: Any) -> Any:
        return w.transpose(*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]).reshape(m, n)

    return Product(1, batch * math.prod(counts), m, n, (), (numbers.out_spec[1],), arrange, read, write)
