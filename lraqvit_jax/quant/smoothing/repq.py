"""RepQ-ViT's scale reparameterization (Li et al. 2023): after a LayerNorm, one range for all channels at no cost.

Where a LayerNorm comes before, activations are calibrated by channel, asymmetrically: scale s_c and centre z_c.
Dividing by `s_c / mean(s)` and moving by the difference of centres, both folded into the LayerNorm and the next kernel
and bias, makes one scale and one centre serve all channels. Where the layer takes no shift, having no bias or zeros
among its inputs, channels are calibrated symmetrically and only divided. Other products stay as they are.
"""

import numpy as np
from jaxtyping import Float

from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.quant.quantize import Product, Products

SMALLEST = 1e-8
CONSTANT = 1e-3
"""A channel with a smaller share of the mean range counts as constant: it has no say in the common centre."""


def smooth(products: Products, options: Quantizer) -> dict[str, np.ndarray]:
    """`s_c / mean(s)` of every product after a LayerNorm."""
    del options
    scales = {key: _channels(product)[0] for key, product in products.items() if product.after_norm}
    return {key: np.asarray(scale / scale.mean(), np.float32) for key, scale in scales.items()}


def shift(products: Products, options: Quantizer) -> dict[str, np.ndarray]:
    """What is taken from each channel so that after the division all have one centre."""
    del options
    shifts = {}
    for key, product in products.items():
        if product.takes_shift:
            scale, center = _channels(product)
            varied = scale > CONSTANT * scale.mean()
            shifts[key] = np.asarray(center - scale * np.mean((center / scale)[varied]), np.float32)
    return shifts


def _channels(product: Product) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Half the range and the centre of every channel; of a range about 0 where the layer takes no shift."""
    high, low = product.x.max((0, 1)).astype(np.float64), product.x.min((0, 1)).astype(np.float64)
    if not product.takes_shift:
        high = np.maximum(high, -low)
        low = -high
    scale = (high - low) / 2
    return np.maximum(scale, max(CONSTANT * scale.mean(), SMALLEST)), (high + low) / 2
