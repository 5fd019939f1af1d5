"""The quantized form: products on integers, Eq. 11."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from lraqvit_jax.forms import pivoted
from lraqvit_jax.forms.pivoted import take
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.fake_quant import Latent, codes_of
from lraqvit_jax.quant.qarray import QArray


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
    kernel: QArray | Latent,
    grid: InputGrid,
    layer: LayerPlan,
    arithmetic: str,
    inputs: Int[Array, "heads k"] | None = None,
) -> Float[Array, "... tokens n"]:
    """`Q(x / smooth) Q(smooth W)`: rounds x, multiplies integers, rescales.

    What is constant at inference is multiplied together first, in the order that a compiler folds it: the rounding is
    then the same whether the scales are arguments or, as in an exported file, constants.

    Args:
        x: float activations.
        kernel: already multiplied by `smooth`; in training a float one, to be rounded here.
        grid: of x.
        layer: gives the bits of x, and whether a dynamic grid is asymmetric.
        arithmetic: see `models.linear.LinearOptions`.
        inputs: which of x each head multiplies, where the kernel has k rows and its columns are those of the heads, one
            head after another; None is all.
    """
    if grid.scale is None and arithmetic == "unrounded":
        grid = grid._replace(scale=jnp.ones(()))
    elif grid.scale is None:
        x, grid = _dynamic(x, grid, layer)
    scale, center, smooth = jnp.asarray(grid.scale), grid.center, grid.smooth
    step, middle = (one if one is None or smooth is None else one * smooth for one in (scale, center))
    shifted = x if middle is None else x - middle
    rows = codes_of(arithmetic)(shifted, step, layer.bits).reshape(-1, x.shape[-1])
    values, dot = kernel.unpack(), qarray.integer_dot if arithmetic == "integer" else qarray.float_dot
    sums = _sums(rows, values, kernel, dot, inputs).reshape(*x.shape[:-1], -1)
    total = sums * (scale if kernel.group else scale * kernel.scale)
    if center is None:
        return total
    columns = qarray.scaled_dot(jnp.ones((1, len(values))), values, kernel.scale, kernel.group, dot)[0]
    return total + center * columns


def quantized(
    params: Mapping[str, Any],
    x: Float[Array, "... tokens m"],
    layer: LayerPlan,
    rows: Mapping[str, int],
    arithmetic: str = "integer",
) -> Float[Array, "... tokens n"]:
    """A layer on integers: its product, or the two of its pair.

    Args:
        params: the kernel, or u and v, as they are stored; static scales and centres; what the inputs of each are
            divided by; in training shares of the range; the basis of a pivoted layer.
        x: float activations.
        layer: of the plan.
        rows: of each kernel.
        arithmetic: see `models.linear.LinearOptions`.
    """
    basis = params.get("basis")
    for name in ("u", "v") if layer.rank else ("kernel",):
        part = "z" if name == "v" else "x"
        multiply = functools.partial(
            quantized_product,
            kernel=_kernel(params[name], layer, rows[name]),
            grid=_grid(params, part, layer),
            layer=layer,
            arithmetic=arithmetic,
        )
        if name == "v" and layer.basis in ("output", "leading"):
            x = pivoted.joined(x, multiply(x), basis)
        elif name != "v" and layer.basis == "input":
            x = pivoted.copied(x, basis, multiply)
        else:
            x = multiply(x)
    return x


def _grid(params: Mapping[str, Any], part: str, layer: LayerPlan) -> InputGrid:
    """The grid of "x", what the layer reads, or of "z", what is between its factors."""
    smooth = params.get("smooth" if part == "x" else "z_smooth")
    if layer.granularity == "per_token_dynamic":
        clip = params.get(f"{part}_clip")
        return InputGrid(smooth=smooth, clip=layer.clip_of(part) if clip is None else jnp.minimum(1, clip))
    return InputGrid(params[f"{part}_scale"], params.get(f"{part}_center"), smooth)


def _kernel(stored: Mapping[str, Array], layer: LayerPlan, rows: int) -> QArray | Latent:
    """A quantized layer's kernel of its parameters, {qvalue, scale} or, in training, {latent, scale}."""
    if "latent" in stored:
        return Latent(stored["latent"], stored["scale"], layer.kernel_bits, layer.group)
    return qarray.of(stored, layer.kernel_bits, layer.group, rows)


def _sums(
    rows: Float[Array, "rows m"],
    values: Int8[Array, "k n"],
    kernel: QArray | Latent,
    dot: qarray.Dot,
    inputs: Int[Array, "heads k"] | None,
) -> Float[Array, "rows n"]:
    """Sums of integers, in groups already times the kernel's scales."""

    def of_head(rows: Array, values: Array, scale: Array) -> Array:
        return qarray.scaled_dot(rows, values, scale, kernel.group, dot) if kernel.group else dot(rows, values)

    if inputs is None:
        return of_head(rows, values, kernel.scale)
    columns = (jnp.split(part, len(inputs), -1) for part in (values, kernel.scale))
    return jnp.concatenate(
        [of_head(take(rows, channels), *parts) for channels, *parts in zip(inputs, *columns, strict=True)], -1
    )


def _dynamic(
    x: Float[Array, "... tokens m"], grid: InputGrid, layer: LayerPlan
) -> tuple[Float[Array, "... tokens m"], InputGrid]:
    """x / smooth, and a grid for each of its tokens."""
    x = x if grid.smooth is None else x * (1 / grid.smooth)
    if layer.asymmetric:
        return x, InputGrid(*qarray.input_center(x, "per_token_dynamic", grid.clip, layer.bits))
    return x, InputGrid(qarray.input_scale(x, "per_token_dynamic", grid.clip, layer.bits))
