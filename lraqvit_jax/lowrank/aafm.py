"""AAFM (Yu and Wu, AAAI 2023): the pair nearest in the layer's output around its mean, and a bias that keeps the mean.

`u = W V_r`, `v = V_rᵀ` with V_r the leading eigenvectors of Cov(y) = Wᵀ Cov(x) W; the mean output goes into the bias
(`moments.bias_shift`). Their free bias between the factors adds nothing to it. Optimal among all pairs with any bias.
"""

import numpy as np
from jaxtyping import Float

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import whitened

STATISTICS = "inputs"
CORRECTS_BIAS = True


def decompose(kernel: Float[np.ndarray, "m n"], rank: int, moments: Moments) -> Pair:
    """The pair of rank `rank` that keeps the most variance of the output."""
    return whitened.truncate(kernel, moments.covariance, rank)
