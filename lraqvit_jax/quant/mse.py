"""Calibration by squared error: the range of the activations, shrunk by the share that rounds them best."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.plan import LayerPlan
from lraqvit_jax.quant import minmax
from lraqvit_jax.quant.percentile import best
from lraqvit_jax.quant.quantize import Grid

SHARES = np.linspace(1, 0.2, 33).tolist()


def ranges(x: Float[Array, "images tokens m"], layer: LayerPlan) -> Grid:
    """For each static scale, the best of SHARES; the range itself where scales are dynamic."""
    if layer.granularity == "per_token_dynamic":
        return minmax.ranges(x, layer)
    return best(x, [minmax.ranges(x, dataclasses.replace(layer, clip=layer.clip * share)) for share in SHARES], layer)
