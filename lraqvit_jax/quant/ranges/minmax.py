"""Calibration by the range of the activations: nothing is clipped, but what the plan's `clip` cuts off."""

from jaxtyping import Array, Float

from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.quantize import Grid


def ranges(x: Float[Array, "images tokens m"], layer: LayerPlan) -> Grid:
    """The grid that spans all of x; of each token where the layer's scales are dynamic."""
    arguments = (layer.granularity, layer.clip, layer.bits)
    if layer.asymmetric:
        return Grid(*qarray.input_center(x, *arguments))
    return Grid(qarray.input_scale(x, *arguments))
