"""NaivePTQ: min-max scales and nothing else. What the other methods are measured against."""

from collections.abc import Mapping

import numpy as np

from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.quant.quantize import Product


def smooth(products: Mapping[str, Product], options: Quantizer) -> dict[str, np.ndarray]:
    """No product is smoothed."""
    del products, options
    return {}
