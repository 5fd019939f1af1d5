"""Calibration by percentiles, as RepQ-ViT does it: of three clipping ranges the one with the smallest squared error."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant.quantize import Grid, on_grid
from lraqvit_jax.quant.ranges import minmax

SHARES = (0.999, 0.9999, 0.99999)


def ranges(x: Float[Array, "images tokens m"], layer: LayerPlan) -> Grid:
    """The best grid between the lower and upper ends of SHARES; the range itself where scales are dynamic."""
    if layer.granularity == "per_token_dynamic":
        return minmax.ranges(x, layer)
    return best(x, [_between(x, share, layer) for share in SHARES], layer)


def best(x: Float[Array, "images tokens m"], grids: list[Grid], layer: LayerPlan) -> Grid:
    """For each scale, that of the grid with the smallest squared error of what it covers."""
    axes = (0, 2) if layer.granularity == "per_token" else None
    errors = jnp.stack([jnp.sum(jnp.square(on_grid(x, grid, layer.bits) - x), axes) for grid in grids])
    which = jnp.argmin(errors, 0)

    def pick(values: list[Array]) -> Array:
        stacked = jnp.stack(values)
        return jnp.take_along_axis(stacked.reshape(len(values), -1), which.reshape(1, -1), 0)[0].reshape(
            values[0].shape
        )

    if not layer.asymmetric:
        return Grid(pick([grid.scale for grid in grids]))
    return Grid(pick([grid.scale for grid in grids]), pick([jnp.asarray(grid.center) for grid in grids]))


def _between(x: Float[Array, "images tokens m"], share: float, layer: LayerPlan) -> Grid:
    """The grid that spans the middle of the values, all but 1 - share at each end."""
    axes, keep = ((0, 2), True) if layer.granularity == "per_token" else (None, False)
    values = np.asarray(x)  # NumPy selects, thirty times faster than XLA sorts on a CPU.
    if not layer.asymmetric:
        end = np.quantile(np.abs(values), share, axes, keepdims=keep)
        return minmax.ranges(jnp.clip(x, -end, end), layer)
    low, high = np.quantile(values, [1 - share, share], axes, keepdims=keep)
    return minmax.ranges(jnp.clip(x, low, high), layer)
