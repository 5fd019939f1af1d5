"""QADS (HyQ, Lee et al. 2024): a vector alpha as WADS has it, by Adam from 1 on the output error, without a penalty.

Its published code rounds without a straight-through gradient, so that only the largest entries move alpha; here the
gradient goes through the rounding. 1,000 steps, cosine decay, the best alpha met, every product.
"""

import dataclasses

import numpy as np

from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.quant.quantize import Products
from lraqvit_jax.quant.smoothing import wads


def smooth(products: Products, options: Quantizer) -> dict[str, np.ndarray]:
    """Alpha for every product, from 1 on."""
    return wads.minimize(products, dataclasses.replace(options, penalty="none"), from_grid=False)
