"""Calibration by squared error: the range of the activations, shrunk by the share that rounds them best.

A static scale has its share; dynamic scales have one for all tokens of a product, which goes into the plan as `clip`
and, between the factors of a pair, `clip_z`.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.plan import LayerPlan
from lraqvit_jax.quant import minmax
from lraqvit_jax.quant.percentile import best
from lraqvit_jax.quant.quantize import Grid, on_grid

SHARES = np.linspace(1, 0.2, 33).tolist()


def ranges(x: Float[Array, "images tokens m"], layer: LayerPlan) -> Grid:
    """For each static scale, or for all dynamic ones together, the best of SHARES."""
    layers = [dataclasses.replace(layer, clip=layer.clip * share) for share in SHARES]
    grids = [minmax.ranges(x, one) for one in layers]
    if layer.granularity != "per_token_dynamic":
        return best(x, grids, layer)
    errors = [float(jnp.sum(jnp.square(on_grid(x, grid, layer.bits) - x))) for grid in grids]
    least = int(np.argmin(errors))
    return grids[least]._replace(clip=layers[least].clip)
