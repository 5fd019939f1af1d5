"""Symmetric integer arrays: `x ~= qvalue * scale`, with qvalue in [-qmax, qmax] and qmax = 2**(bits - 1) - 1.

The grid leaves out -2**(bits - 1), so that a value and its negative round alike. Rounding is to nearest, ties to even.
A quantized kernel is a `QArray`; among a model's parameters, in memory and on disk, it is the plain dict
`{"qvalue", "scale"}`, and the plan says the rest: `QArray.stored` and `of` lead from one to the other.

An asymmetric grid of activations is a symmetric one about a centre c: `x ~= qvalue * scale + c`. Then
`x W ~= scale * (qvalue @ W) + c * sum_j W_j`, what runtimes compute with a zero point of -c / scale.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from lraqvit_jax.plan.cost import packed_rows
from lraqvit_jax.plan.records import PACKED

ROUNDINGS = 2.0**-20
"""Entries within this share of the largest are as large: one value, computed twice, may differ by some roundings."""
SMALLEST = 2.0**-100
"""Ranges below this count as zero: their scale, or its reciprocal, would leave float32."""


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


_compiled = functools.partial(jax.jit, inline=True)
"""One program of a function that is called with arrays of every layer's shape: XLA would compile each of its operations
for each of them. Within another program it is as if it were not there."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QArray:
    """A kernel (m, n) of integers with its scales: a pytree of two arrays, all else static.

    What always holds, and `check` looks after:

    * qvalue is int8 (m, n), or below 7 bits uint8 (packed_rows(m, bits), n), packed as `pack` does it;
    * every integer is in [-qmax(bits), qmax(bits)];
    * scale is float32, one for each output channel, (n,), or for each group of input channels and output channel,
      (ceil(m / group), n); each is above 0.

    Attributes:
        qvalue: the integers.
        scale: what each is multiplied by.
        bits: of the integers.
        group: input channels that share a scale; 0 is all of them.
        rows: m.
    """

    qvalue: Int8[Array, "m n"] | UInt8[Array, "packed n"]
    scale: Float[Array, " n"] | Float[Array, "groups n"]
    bits: int = _static()
    group: int = _static()
    rows: int = _static()

    def check(self) -> "QArray":
        """Itself. ValueError where an invariant does not hold; under `jit`, where there are no values yet, as far as
        shapes and dtypes tell."""
        columns = self.qvalue.shape[-1:]
        shape, dtype = (packed_rows(self.rows, self.bits), *columns), "uint8" if self.bits in PACKED else "int8"
        if (self.qvalue.shape, self.qvalue.dtype) != (shape, dtype):
            actual = f"{self.qvalue.dtype} {self.qvalue.shape}"
            raise ValueError(f"{self.rows} rows of {self.bits} bits are {dtype} {shape}, and qvalue is {actual}")
        groups = (-(-self.rows // self.group), *columns) if self.group else columns
        if (self.scale.shape, self.scale.dtype) != (groups, "float32"):
            actual = f"{self.scale.dtype} {self.scale.shape}"
            raise ValueError(f"scales of {self.rows} rows in groups of {self.group} are float32 {groups}, not {actual}")
        if _has_values(self.qvalue) and _has_values(self.scale):
            with jax.ensure_compile_time_eval():  # Constants of a program that is traced have values, too.
                values, limit = np.asarray(self.unpack()), qmax(self.bits)
            if values.size and (values.min() < -limit or values.max() > limit):
                raise ValueError(f"integers of {self.bits} bits from {values.min()} to {values.max()} leave +-{limit}")
            if not np.all(np.asarray(self.scale) > 0):
                raise ValueError("a scale is not above 0")
        return self

    def unpack(self) -> Int8[Array, "m n"]:
        """The integers, one a byte."""
        return unpack(self.qvalue, self.bits, self.rows)

    def each_row(self) -> Float[Array, " n"] | Float[Array, "m n"]:
        """The scale of every entry, as it broadcasts."""
        return each_row(self.scale, self.rows, self.group)

    @_compiled
    def dequantize(self) -> Float[Array, "m n"]:
        """The kernel that it stands for."""
        return self.unpack().astype(jnp.float32) * self.each_row()

    def stored(self) -> dict[str, Array]:
        """What a model has of it among its parameters; back by `of`."""
        return {"qvalue": self.qvalue, "scale": self.scale}


def of(stored: Mapping[str, Array], bits: int, group: int, rows: int) -> QArray:
    """The kernel of which a model stores {qvalue, scale}, with what its plan says. ValueError where they do not fit."""
    return QArray(stored["qvalue"], stored["scale"], bits, group, rows).check()


def _has_values(x: Any) -> bool:
    """Whether the entries can be looked at here: not while `jit` traces, nor where other processes hold some."""
    return isinstance(x, np.ndarray) or (not isinstance(x, jax.core.Tracer) and x.is_fully_addressable)


def qmax(bits: int) -> int:
    """The largest integer of the grid: 127 for 8 bits."""
    return 2 ** (bits - 1) - 1


def max_scale(x: Float[Array, "..."], axis: int | tuple[int, ...] | None, bits: int = 8) -> Float[Array, "..."]:
    """The scale that puts max |x| over `axis` (kept, with size 1) on the end of the grid; 1 where x is all but zero.

    `axis=None` reduces over everything, to shape ().
    """
    largest = _largest(x, axis)
    return jnp.where(largest > SMALLEST, largest / qmax(bits), 1.0).astype(jnp.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(x: jax.Array, axis: int | tuple[int, ...] | None) -> jax.Array:
    """max |x| over `axis`. `jnp.max` finds the entry whose gradient it is by ==, and divides by how many are: by none
    where XLA computes x a second time with other roundings."""
    return jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None)


@_largest.defjvp
def _largest_jvp(axis: Any, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (slope,) = primals, tangents
    largest = _largest(x, axis)
    keep = axis is not None
    at = (jnp.abs(x) >= largest * (1 - ROUNDINGS)).astype(x.dtype)
    count = jnp.maximum(jnp.sum(at, axis=axis, keepdims=keep), 1)
    return largest, jnp.sum(at * jnp.sign(x) * slope, axis=axis, keepdims=keep) / count


def codes(x: Float[Array, "..."], scale: Float[Array, "..."], bits: int = 8) -> Float[Array, "..."]:
    """The integers of the grid nearest to x / scale, still in float32.

    Multiplies by the reciprocal: XLA does so anyway where the scale is a constant, as in an exported file, and the two
    must fall on the same side of a tie.
    """
    limit = qmax(bits)
    return jnp.round(jnp.clip(x.astype(jnp.float32) * (1 / scale), -limit, limit))


@_compiled(static_argnames=("bits", "group"))
def kernel_scale(kernel: Float[Array, "m n"], bits: int = 8, group: int = 0) -> Float[Array, "..."]:
    """The scales of a kernel from max |w| over the inputs: (n,), or (groups, n) where `group` inputs share one."""
    if not group:
        return max_scale(kernel, axis=0, bits=bits)[0]
    return max_scale(_grouped(kernel, group), axis=1, bits=bits)[:, 0]


def each_row(scale: Any, rows: int, group: int = 0) -> Any:
    """The scale of every entry of a kernel with that many rows, as it broadcasts."""
    return scale if scale.ndim == 1 else jnp.repeat(scale, group, axis=0)[:rows]


def quantize_kernel(
    kernel: Float[Array, "m n"], bits: int = 8, group: int = 0, scale: Float[Array, "..."] | None = None
) -> QArray:
    """Rounds a kernel to integers.

    Args:
        kernel: float.
        bits: of the integers.
        group: how many input channels share a scale; 0 is all of them.
        scale: given, or by `kernel_scale`.
    """
    return _rounded(kernel, bits, group, scale).check()


@_compiled(static_argnames=("bits", "group"))
def _rounded(kernel: Float[Array, "m n"], bits: int, group: int, scale: Float[Array, "..."] | None) -> QArray:
    scale = kernel_scale(kernel, bits, group) if scale is None else scale
    rounded = codes(kernel, each_row(scale, len(kernel), group), bits).astype(jnp.int8)
    return QArray(pack(rounded, bits), scale, bits, group, len(kernel))


@_compiled(static_argnames="bits")
def pack(values: Int8[Array, "m n"], bits: int) -> Array:
    """Packs integers of 3 to 6 bits into bytes along the rows; 7 and 8 bits stay int8.

    A word of lcm(bits, 8) bits holds one row of each of lcm(bits, 8) / bits equal parts of the kernel, that of the
    first part in the lowest bits: with 4 bits a byte holds two rows, with 6 bits three bytes hold four. First come the
    lowest bytes of all words, then the next ones. Stored are values plus 2**(bits - 1); rows that fill up are 0.
    """
    if bits not in PACKED:
        return values
    word, per_word = math.lcm(bits, 8), math.lcm(bits, 8) // bits
    unsigned = values.astype(jnp.uint32) + 2 ** (bits - 1) & (2**bits - 1)
    unsigned = jnp.pad(unsigned, ((0, -len(values) % per_word), (0, 0)), constant_values=2 ** (bits - 1))
    parts = list(zip(range(0, word, bits), unsigned.reshape(per_word, -1, values.shape[1]), strict=True))
    return jnp.concatenate([_bits(parts, bits, byte, 8).astype(jnp.uint8) for byte in range(0, word, 8)])


@_compiled(static_argnames=("bits", "rows"))
def unpack(packed: Array, bits: int, rows: int) -> Int8[Array, "m n"]:
    """The inverse of `pack`; `rows` is m."""
    if bits not in PACKED:
        return packed
    word = math.lcm(bits, 8)
    parts = list(zip(range(0, word, 8), packed.astype(jnp.uint32).reshape(word // 8, -1, packed.shape[1]), strict=True))
    values = jnp.concatenate([_bits(parts, 8, at, bits) for at in range(0, word, bits)])
    return (values[:rows].astype(jnp.int32) - 2 ** (bits - 1)).astype(jnp.int8)


def _bits(parts: list[tuple[int, Array]], width: int, at: int, count: int) -> Array:
    """The `count` bits from bit `at` of a word on, of what it is made of: integers of `width` bits, each with the bit
    that it begins at."""
    there = [(start, part) for start, part in parts if at - width < start < at + count]
    moved = [part << (start - at) if start >= at else part >> (at - start) for start, part in there]
    return functools.reduce(jnp.bitwise_or, moved) & (2**count - 1)


def _grouped(rows: Array, group: int) -> Array:
    """(m, ...) -> (groups, group, ...), filled up with zeros."""
    rows = jnp.pad(rows, ((0, -len(rows) % group), *[(0, 0)] * (rows.ndim - 1)))
    return rows.reshape(-1, group, *rows.shape[1:])


@_compiled(static_argnames=("granularity", "bits"))
def input_scale(x: Float[Array, "... tokens m"], granularity: str, clip: Any = 1.0, bits: int = 8) -> Array:
    """The scale of activations from their range.

    Args:
        x: activations; the last two axes are tokens and features.
        granularity: "per_tensor" -> shape (); "per_token" -> (tokens, 1), over images too; "per_token_dynamic"
            -> (..., tokens, 1), each token by itself.
        clip: share of the range that the grid spans.
        bits: width of the grid.

    Returns:
        float32 scales that broadcast against x.
    """
    axes = {"per_tensor": None, "per_token": (*range(x.ndim - 2), x.ndim - 1), "per_token_dynamic": -1}[granularity]
    scale = max_scale(x, axis=axes, bits=bits) * clip
    return scale.reshape(scale.shape[-2:]) if granularity == "per_token" else scale


@_compiled(static_argnames=("granularity", "bits"))
def input_center(
    x: Float[Array, "... tokens m"], granularity: str, clip: Any = 1.0, bits: int = 8
) -> tuple[Array, Array]:
    """The scale and centre of an asymmetric grid, as `input_scale` gives that of a symmetric one.

    The centre is a whole multiple of the scale, so that a runtime's integer zero point says the same.
    """
    axes = {"per_tensor": None, "per_token": (*range(x.ndim - 2), x.ndim - 1), "per_token_dynamic": -1}[granularity]
    high, low = (end(x, axis=axes, keepdims=axes is not None) for end in (jnp.max, jnp.min))
    center = (high + low) / 2
    scale = max_scale(jnp.stack([high - center, low - center]), axis=0, bits=bits)[0] * clip
    center = jnp.round(center / scale) * scale
    if granularity == "per_token":
        return scale.reshape(scale.shape[-2:]), center.reshape(center.shape[-2:])
    return scale, center


def integer_dot(x: Float[Array, "... m"], kernel: Int8[Array, "... m n"]) -> Float[Array, "... n"]:
    """Multiplies integers held in float by an int8 kernel: int8 x int8 -> int32, exact, returned as float32."""
    total = jnp.matmul(x.astype(jnp.int8), kernel, preferred_element_type=jnp.int32)
    return total.astype(jnp.float32)


def float_dot(x: Float[Array, "... m"], kernel: Int8[Array, "... m n"]) -> Float[Array, "... n"]:
    """The differentiable twin of `integer_dot`: the same integers in float32.

    Equal to it bit for bit while every partial sum stays below 2**24, which 127 * 127 * m does for m <= 1040.
    """
    return jnp.matmul(x, kernel.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


Dot = Callable[[Array, Array], Array]


def scaled_dot(
    x: Float[Array, "rows m"], kernel: Int8[Array, "m n"], scale: Float[Array, "..."], group: int, dot: Dot
) -> Float[Array, "rows n"]:
    """Sums of integers times the kernel's scales: one product, or one for each group of input channels.

    Args:
        x: integers held in float.
        kernel: unpacked.
        scale: (n,) or (groups, n).
        group: input channels that share a scale; 0 is all.
        dot: `integer_dot` or `float_dot`.
    """
    if not group:
        return dot(x, kernel) * scale
    parts = dot(jnp.swapaxes(_grouped(x.T, group), 1, 2), _grouped(kernel, group))
    return jnp.sum(parts * scale[:, None], axis=0)
