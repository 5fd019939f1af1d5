"""The pair that moves the logits least: whitening on both sides of the kernel.

An error E of the kernel changes a layer's output by Eᵀ x and the logits by J Eᵀ x. With the second moment C of the
inputs and G = E[Jᵀ J] of the outputs, taken for independent (the Kronecker factorization of K-FAC, Martens and Grosse
2015), the mean square of that is `trace(G Eᵀ C E)`. With G = R Rᵀ it is the error of `W R` under C alone: truncate
that, and undo R in the second factor. Whitened truncation is G = 1, a layer on its own.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import whitened

STATISTICS = "gradients"
CORRECTS_BIAS = True
DAMPING = 0.1
"""Share of G's mean diagonal that is added to the diagonal: no direction of the output is free."""


def decompose(kernel: Float[np.ndarray, "m n"], rank: int, moments: Moments, damping: float = DAMPING) -> Pair:
    """The pair of rank `rank` that changes the logits least, as far as the two factors tell."""
    return spectrum(kernel, moments, damping).cut(rank)


def losses(kernel: Float[np.ndarray, "m n"], moments: Moments, damping: float = DAMPING) -> Float[np.ndarray, " k"]:
    """The mean square change of the centred logits that each rank channel is worth, descending: `spectrum`'s, without
    its channels, which take most of the time."""
    kernel = np.asarray(kernel, np.float64)
    if kernel.shape[1] <= kernel.shape[0]:
        return whitened.eigenvalues(kernel @ output_root(moments, damping), moments.covariance)
    return whitened.eigenvalues(kernel, moments.covariance, _damped(moments, damping))


class Spectrum(NamedTuple):
    """A kernel by what the logits feel of it: pairs of any rank, from one decomposition.

    Attributes:
        felt: the kernel times R.
        root: R with R Rᵀ = G.
        losses: mean square change of the logits that each rank channel is worth, descending.
        right: the channels, orthonormal rows.
    """

    felt: Float[np.ndarray, "m n"]
    root: Float[np.ndarray, "n n"]
    losses: Float[np.ndarray, " k"]
    right: Float[np.ndarray, "k n"]

    def cut(self, rank: int) -> Pair:
        """The pair of that rank that changes the logits least."""
        right = self.right[:rank]
        return whitened.balance(Pair(self.felt @ right.T, np.linalg.solve(self.root.T, right.T).T))


def spectrum(kernel: Float[np.ndarray, "m n"], moments: Moments, damping: float = DAMPING) -> Spectrum:
    """Decomposes a kernel; arguments as of `decompose`."""
    root = output_root(moments, damping)
    felt = np.asarray(kernel, np.float64) @ root
    return Spectrum(felt, root, *whitened.principal(felt, moments.covariance))


def output_root(moments: Moments, damping: float = DAMPING) -> Float[np.ndarray, "n n"]:
    """R with R Rᵀ = G, damped; the identity where no output matters."""
    return np.linalg.cholesky(_damped(moments, damping))


def _damped(moments: Moments, damping: float) -> Float[np.ndarray, "n n"]:
    """G, damped."""
    assert moments.gradient is not None
    gradient = moments.gradient.copy()
    mean = np.trace(gradient) / len(gradient)
    gradient[np.diag_indices(len(gradient))] += damping * mean if mean > 0 else 1.0
    return gradient
