"""Symmetric integer arrays: `x ~= qvalue * scale`, with qvalue in [-qmax, qmax] and qmax = 2**(bits - 1) - 1.

The grid leaves out -2**(bits - 1), so that a value and its negative round alike. Rounding is to nearest, ties to even.
A quantized weight is a plain dict `{"qvalue": int8 (m, n), "scale": float32 (n,)}`: one scale an output channel.
"""

from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

SMALLEST = 2.0**-100
"""Ranges below this count as zero: their scale, or its reciprocal, would leave float32."""


class QArray(TypedDict):
    """An int8 matrix with one scale for each output channel."""

    qvalue: Int8[Array, "m n"]
    scale: Float[Array, " n"]


def qmax(bits: int) -> int:
    """The largest integer of the grid: 127 for 8 bits."""
    return 2 ** (bits - 1) - 1


def max_scale(x: Float[Array, "..."], axis: int | tuple[int, ...] | None, bits: int = 8) -> Float[Array, "..."]:
    """The scale that puts max |x| over `axis` (kept, with size 1) on the end of the grid; 1 where x is all but zero.

    `axis=None` reduces over everything, to shape ().
    """
    absmax = jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None)
    return jnp.where(absmax > SMALLEST, absmax / qmax(bits), 1.0).astype(jnp.float32)


def codes(x: Float[Array, "..."], scale: Float[Array, "..."], bits: int = 8) -> Float[Array, "..."]:
    """The integers of the grid nearest to x / scale, still in float32.

    Multiplies by the reciprocal: XLA does so anyway where the scale is a constant, as in an exported file, and the two
    must fall on the same side of a tie.
    """
    limit = qmax(bits)
    return jnp.round(jnp.clip(x.astype(jnp.float32) * (1 / scale), -limit, limit))


def quantize_kernel(kernel: Float[Array, "m n"], bits: int = 8) -> QArray:
    """Rounds a kernel to int8, one scale an output channel (max |w| over the inputs)."""
    scale = max_scale(kernel, axis=0, bits=bits)
    return QArray(qvalue=codes(kernel, scale, bits).astype(jnp.int8), scale=scale[0])


def dequantize_kernel(kernel: QArray) -> Float[Array, "m n"]:
    return kernel["qvalue"].astype(jnp.float32) * kernel["scale"]


def input_scale(x: Float[Array, "... tokens m"], granularity: str, clip: float = 1.0, bits: int = 8) -> Array:
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


def integer_dot(x: Float[Array, "rows m"], kernel: Int8[Array, "m n"]) -> Float[Array, "rows n"]:
    """Multiplies integers held in float by an int8 kernel: int8 x int8 -> int32, exact, returned as float32."""
    dimensions = (((1,), (0,)), ((), ()))
    total = jax.lax.dot_general(x.astype(jnp.int8), kernel, dimensions, preferred_element_type=jnp.int32)
    return total.astype(jnp.float32)


def float_dot(x: Float[Array, "rows m"], kernel: Int8[Array, "m n"]) -> Float[Array, "rows n"]:
    """The differentiable twin of `integer_dot`: the same integers in float32.

    Equal to it bit for bit while every partial sum stays below 2**24, which 127 * 127 * m does for m <= 1040.
    """
    return jnp.matmul(x, kernel.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
