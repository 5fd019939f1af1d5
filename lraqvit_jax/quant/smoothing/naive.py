"""NaivePTQ: min-max scales and nothing else. What the other methods are measured against."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.quant.quantize import Product


def smooth(products: Mapping[str, Product], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """No product is smoothed."""
    del products, options
    return {}
