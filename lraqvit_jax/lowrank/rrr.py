"""Reduced-rank regression (Izenman 1975): the pair that makes the dense output from the compressed model's own input.

The layer reads x in the compressed model, where it reads t in the dense one, and should still give `t W + b`. The
best affine map from x is `W* = W + Cov(x)⁻¹ Cov(x, t - x) W` with a free bias; the best of rank r is W* truncated as
AAFM does, under Cov(x). Layers are solved in the order of the forward pass, each on what those before it left.
"""

import numpy as np
from jaxtyping import Float

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import whitened

STATISTICS = "sequential"
CORRECTS_BIAS = True
RIDGE = 0.01
"""Share of the mean variance of x that is added to every variance: where x says little, W* stays at W."""


def decompose(kernel: Float[np.ndarray, "m n"], rank: int, moments: Moments, ridge: float = RIDGE) -> Pair:
    """The pair of rank `rank` with the nearest outputs to the dense layer's; `moments.cross` says what those read."""
    covariance = moments.covariance
    target = regression(kernel, moments, ridge)
    return whitened.truncate(target, covariance, rank)


def regression(kernel: Float[np.ndarray, "m n"], moments: Moments, ridge: float = RIDGE) -> Float[np.ndarray, "m n"]:
    """W*, the full-rank kernel with the nearest outputs."""
    kernel, covariance = np.asarray(kernel, np.float64), moments.covariance
    if moments.cross is None:
        return kernel
    damped = covariance.copy()
    damped[np.diag_indices(len(damped))] += max(ridge * np.trace(covariance) / len(covariance), 1e-30)
    change = (moments.cross_covariance - covariance) @ kernel
    return kernel + np.linalg.solve(damped, change)
