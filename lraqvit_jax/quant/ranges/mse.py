"""Calibration by squared error: the range of the activations, shrunk by the share that rounds them best.

A static scale has its share; dynamic scales have one for all tokens of a product, which goes into the plan as `clip`
and, between the factors of a pair, `clip_z`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant.fake_quant import fake_quant_input
from lraqvit_jax.quant.quantize import Grid
from lraqvit_jax.quant.ranges import minmax
from lraqvit_jax.quant.ranges.percentile import best

SHARES = np.linspace(1, 0.2, 33).tolist()
TOKENS = 2000
"""Of those that dynamic scales have, so many are looked at to find the one share for all."""


def ranges(x: Float[Array, "images tokens m"], layer: LayerPlan) -> Grid:
    """For each static scale, or for all dynamic ones together, the best of SHARES."""
    layers = [dataclasses.replace(layer, clip=layer.clip * share) for share in SHARES]
    if layer.granularity != "per_token_dynamic":
        return best(x, [minmax.ranges(x, one) for one in layers], layer)
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[:: max(1, len(rows) // TOKENS)]
    least = layers[int(jnp.argmin(_errors(rows, layer)))]
    return minmax.ranges(x, least)._replace(clip=least.clip)


@jax.jit(static_argnames="layer")
def _errors(rows: Float[Array, "tokens m"], layer: LayerPlan) -> Float[Array, " shares"]:
    def error(clip: Array) -> Array:
        one: Any = dataclasses.replace(layer, clip=clip)  # type: ignore[arg-type]
        return jnp.sum(jnp.square(fake_quant_input(rows, one) - rows))

    return jax.lax.map(error, layer.clip * jnp.asarray(SHARES))
