"""NaivePTQ: min-max scales and nothing else. What the other methods are measured against."""

import numpy as np

from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.quant.quantize import Products


def smooth(products: Products, options: Quantizer) -> dict[str, np.ndarray]:
    """No product is smoothed."""
    del products, options
    return {}
