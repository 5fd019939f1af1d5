"""QADS (HyQ, Lee et al. 2024): a vector alpha as WADS has it, by Adam from 1 on the output error, without a penalty.

Its published code rounds without a straight-through gradient, so that only the largest entries move alpha; here the
gradient goes through the rounding. 1,000 steps, cosine decay, the best alpha met, every product.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.quant.quantize import Product
from lraqvit_jax.quant.smoothing import wads


def smooth(products: Mapping[str, Product], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Alpha for every product."""
    fixed = {"penalty": "none", "select": "all", "grid": False}
    return wads.smooth(products, {**options, **fixed})
