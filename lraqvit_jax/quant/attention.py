"""The products of attention on integers, by choice: query times key, and the softmax times value.

Query and key have a dynamic scale for each token and head, value one for each channel and head. The softmax, which lies
between 0 and 1, has a grid for each query: "uniform", from 0 to the largest, or "log_sqrt2", the powers of sqrt(2)
below the largest (RepQ-ViT, Li et al. 2023), a shift and one of two factors to an integer runtime.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.fake_quant import codes_of
from lraqvit_jax.quant.qarray import SMALLEST


def logits(
    query: Float[Array, "... tokens heads dim"],
    key: Float[Array, "... tokens heads dim"],
    layer: LayerPlan,
    arithmetic: str,
) -> Float[Array, "... heads tokens tokens"]:
    """Query times key, before the softmax.

    Args:
        query: already divided by the root of dim.
        key: of the same tokens.
        layer: of the layer qkv; "float" in `attention` computes in float.
        arithmetic: see `models.linear.LinearOptions`.
    """
    if layer.attention == "float":
        return jnp.einsum("...qhd,...khd->...hqk", query, key)
    (query, key), scales = _codes((query, key), -1, layer.bits, arithmetic)
    rows, columns = (jnp.swapaxes(scale[..., 0], -1, -2) for scale in scales)
    return _einsum("...qhd,...khd->...hqk", query, key, arithmetic) * (rows[..., None] * columns[..., None, :])


def mix(
    weights: Float[Array, "... heads tokens tokens"],
    value: Float[Array, "... tokens heads dim"],
    layer: LayerPlan,
    arithmetic: str,
) -> Float[Array, "... tokens heads dim"]:
    """The softmax times value; arguments as in `logits`."""
    if layer.attention == "float":
        return jnp.einsum("...hqk,...khd->...qhd", weights, value)
    (codes,), (scale,) = _codes((value,), -3, layer.bits, arithmetic)
    if layer.attention == "log_sqrt2":
        mixed = jnp.einsum("...hqk,...khd->...qhd", log_sqrt2(weights, layer.bits), codes)
        return mixed * scale
    unit, center = qarray.input_center(weights, "per_token_dynamic", 1.0, layer.bits)
    rounded = codes_of(arithmetic)(weights - center, unit, layer.bits)
    total = _einsum("...hqk,...khd->...qhd", rounded, codes, arithmetic)
    unit, center = (jnp.swapaxes(one, -2, -3) for one in (unit, center))
    return (total * unit + center * jnp.sum(codes, -3, keepdims=True)) * scale


def log_sqrt2(weights: Float[Array, "... tokens"], bits: int) -> Float[Array, "... tokens"]:
    """The nearest power of sqrt(2) below the largest of each row, of 2**bits - 1 of them, or 0; straight-through."""
    largest = jnp.maximum(jnp.max(weights, -1, keepdims=True), SMALLEST)
    steps = jnp.round(-2 * jnp.log2(jnp.maximum(weights / largest, SMALLEST)))
    powers = jnp.where(steps < 2**bits - 1, largest * jnp.exp2(-steps / 2), 0)
    return weights + jax.lax.stop_gradient(powers - weights)


def _codes(values: tuple[Array, ...], axis: int, bits: int, arithmetic: str) -> tuple[list[Array], list[Array]]:
    """Integers in float and scales, one for all entries along `axis`."""
    values = tuple(value.astype(jnp.float32) for value in values)
    scales = [qarray.max_scale(value, axis, bits) for value in values]
    return [codes_of(arithmetic)(value, scale, bits) for value, scale in zip(values, scales, strict=True)], scales


def _einsum(how: str, x: Array, y: Array, arithmetic: str) -> Array:
    if arithmetic != "integer":
        return jnp.einsum(how, x, y, precision=jax.lax.Precision.HIGHEST)
    total = jnp.einsum(how, x.astype(jnp.int8), y.astype(jnp.int8), preferred_element_type=jnp.int32)
    return total.astype(jnp.float32)
