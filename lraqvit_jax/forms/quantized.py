"""The quantized form: one product on integers, Eq. 11."""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

from lraqvit_jax.plan.cost import packed_rows
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.fake_quant import codes_of, fake_codes


class InputGrid(NamedTuple):
    """The grid of what a product reads.

    Attributes:
        scale: static, of x / smooth, () or (tokens, 1); None computes one for each token.
        center: of the grid of x / smooth, likewise; None is 0, or one for each token where the layer is asymmetric.
        smooth: what each input channel is divided by; None is 1.
        clip: share of a token's range that a dynamic scale spans.
    """

    scale: Float[Array, "..."] | None = None
    center: Float[Array, "..."] | None = None
    smooth: Float[Array, " m"] | None = None
    clip: Float[Array, ""] | float = 1.0


def quantized_product(
    x: Float[Array, "... tokens m"],
    kernel: Mapping[str, Array],
    grid: InputGrid,
    layer: LayerPlan,
    arithmetic: str,
) -> Float[Array, "... tokens n"]:
    """`Q(x / smooth) Q(smooth W)`: rounds x, multiplies integers, rescales.

    What is constant at inference is multiplied together first, in the order that a compiler folds it: the rounding is
    then the same whether the scales are arguments or, as in an exported file, constants.

    Args:
        x: float activations.
        kernel: integer kernel with its scales (`qarray.QArray`), already multiplied by `smooth`, or a float one with
            its scales, {latent, scale}, to be rounded here.
        grid: of x.
        layer: gives bits, group, and whether a dynamic grid is asymmetric.
        arithmetic: see `models.linear.LinearOptions`.
    """
    m, (scale, center, smooth, clip) = x.shape[-1], grid
    if arithmetic == "train":
        spread = qarray.each_row(kernel["scale"], m, layer.group)
        values = fake_codes(kernel["latent"], spread, layer.kernel_bits)
    else:
        chex.assert_axis_dimension(kernel["qvalue"], 0, packed_rows(m, layer.kernel_bits))
        values = qarray.unpack(kernel["qvalue"], layer.kernel_bits, m)
    if scale is None:
        x = x if smooth is None else x * (1 / smooth)
        if layer.asymmetric:
            scale, center = qarray.input_center(x, "per_token_dynamic", clip, layer.bits)
        else:
            scale = qarray.input_scale(x, "per_token_dynamic", clip, layer.bits)
        smooth_scale, middle = scale, center
    else:
        smooth_scale = scale if smooth is None else scale * smooth
        middle = center if center is None or smooth is None else center * smooth
    shifted = x if middle is None else x - middle
    rounded = codes_of(arithmetic)(shifted, smooth_scale, layer.bits)
    dot = qarray.integer_dot if arithmetic == "integer" else qarray.float_dot
    rows = rounded.reshape(-1, m)
    if layer.group:
        total = qarray.scaled_dot(rows, values, kernel["scale"], layer.group, dot).reshape(*x.shape[:-1], -1) * scale
    else:
        total = dot(rows, values).reshape(*x.shape[:-1], -1) * (scale * kernel["scale"])
    if center is None:
        return total
    return total + center * qarray.scaled_dot(jnp.ones((1, m)), values, kernel["scale"], layer.group, dot)[0]
