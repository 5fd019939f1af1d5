"""SmoothQuant (Xiao et al. 2023): moves part of the input channels' range into the weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.quant.quantize import Products

SMALLEST = 1e-5


def factors(
    x_max: Float[Array, " m"], w_max: Float[Array, " m"], strength: float | Float[Array, ""]
) -> Float[Array, " m"]:
    """`alpha_j = max|X_j|^a / max|W_j|^(1-a)`, scaled to a geometric mean of 1 (no scale changes the result)."""
    log = strength * jnp.log(jnp.maximum(x_max, SMALLEST)) - (1 - strength) * jnp.log(jnp.maximum(w_max, SMALLEST))
    return jnp.exp(log - jnp.mean(log))


def smooth(products: Products, options: Quantizer) -> dict[str, np.ndarray]:
    """`factors` for every product, at the strength of the options."""
    return {
        key: np.asarray(_factors_of(product.x, product.kernel, options.strength)) for key, product in products.items()
    }


@jax.jit
def _factors_of(
    x: Float[Array, "images tokens m"], kernel: Float[Array, "m n"], strength: Float[Array, ""]
) -> Float[Array, " m"]:
    return factors(jnp.max(jnp.abs(x), axis=(0, 1)), jnp.max(jnp.abs(kernel), axis=1), strength)
