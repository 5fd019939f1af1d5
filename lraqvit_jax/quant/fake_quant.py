"""Straight-through fake quantization with a clipping range (LSQ gradient)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.qarray import qmax


def round_ste(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds to nearest, ties to even; the gradient is that of the identity."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def fake_codes(x: Float[Array, "..."], scale: Float[Array, "..."], bits: int = 8) -> Float[Array, "..."]:
    """The grid integers of x, differentiable: `round_ste(clip(x / scale, -qmax, qmax))`."""
    limit = qmax(bits)
    return round_ste(jnp.clip(x.astype(jnp.float32) * (1 / scale), -limit, limit))


def unrounded_codes(x: Float[Array, "..."], scale: Float[Array, "..."], bits: int = 8) -> Float[Array, "..."]:
    """`x / scale`, neither rounded nor clipped: for a file whose runtime does both. The barrier keeps the
    file's converter from multiplying the kernel by the scale instead."""
    del bits
    return jax.lax.optimization_barrier(x.astype(jnp.float32) * (1 / scale))


def codes_of(arithmetic: str) -> Callable[..., Float[Array, "..."]]:
    """What rounds activations to the grid: `qarray.codes` on integers, else its differentiable twin `fake_codes`, or,
    where nothing here is to round them, `unrounded_codes`."""
    return {"integer": qarray.codes, "unrounded": unrounded_codes}.get(arithmetic, fake_codes)


def fake_quant(x: Float[Array, "..."], scale: Float[Array, "..."], bits: int = 8) -> Float[Array, "..."]:
    """Quantizes and dequantizes x on the symmetric grid of `bits`, whose clipping range is `scale * qmax(bits)`.

    The gradient in x is 1 inside the range and 0 outside. The gradient in the scale is LSQ's (Esser et al. 2020):
    `round(x/s) - x/s` inside, `+-qmax` outside, so a clipping range can be learned.

    Args:
        x: any shape.
        scale: float32, broadcasts against x.
        bits: width of the grid.
    """
    return fake_codes(x, scale, bits) * scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Latent:
    """A float kernel in training, rounded wherever it is used: the differentiable twin of a `qarray.QArray`.

    Attributes:
        latent: the kernel.
        scale: of its grid: (n,), or (groups, n) where `group` input channels share one.
        bits: of the grid.
        group: input channels that share a scale; 0 is all of them.
    """

    latent: Float[Array, "m n"]
    scale: Float[Array, " n"] | Float[Array, "groups n"]
    bits: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})

    def unpack(self) -> Float[Array, "m n"]:
        """The integers, held in float."""
        return fake_codes(self.latent, qarray.each_row(self.scale, len(self.latent), self.group), self.bits)


def fake_quant_input(
    x: Float[Array, "... tokens m"], layer: LayerPlan, ends: Float[Array, "2 tokens m"] | None = None
) -> Float[Array, "... tokens m"]:
    """Activations on the grid of their range, as a layer of that plan rounds them; differentiable.

    Args:
        x: activations.
        layer: bits, granularity, clip, asymmetric.
        ends: of the range where x is only a sample: the largest and smallest value of each token and channel. A dynamic
            scale does not need them.
    """
    arguments = (layer.granularity, layer.clip, layer.bits)
    range_of = x if ends is None or layer.granularity == "per_token_dynamic" else ends
    if not layer.asymmetric:
        return fake_quant(x, qarray.input_scale(range_of, *arguments), layer.bits)
    scale, center = qarray.input_center(range_of, *arguments)
    return fake_quant(x - center, scale, layer.bits) + center


def ends(x: Float[Array, "images tokens m"]) -> Float[Array, "2 tokens m"]:
    """The largest and smallest value of each token and channel: all that a static range depends on, whatever positive
    vector the channels are divided by."""
    return jnp.stack([jnp.max(x, 0), jnp.min(x, 0)])
