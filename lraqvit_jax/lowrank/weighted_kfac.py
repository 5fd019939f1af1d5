"""`kfac` with each token weighted by how much the logits feel it: the first factor is E[|g|² x xᵀ], not E[x xᵀ].

K-FAC takes a token's input x and its gradient g for independent. They are not: where the logits read one token, the
others' inputs do not matter. Weighted by |g|², the first factor says which inputs do (`Moments.weighted`).
"""

import numpy as np
from jaxtyping import Float

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import kfac

STATISTICS = "gradients"
CORRECTS_BIAS = True
DAMPING = kfac.DAMPING
"""On ViT-Tiny 0.1 to 3 are alike."""


def seen(moments: Moments) -> Moments:
    """The moments that the bias is corrected by."""
    return moments.weighted()


def decompose(kernel: Float[np.ndarray, "m n"], rank: int, moments: Moments, damping: float = DAMPING) -> Pair:
    """The pair of rank `rank` that changes the logits least, as far as the two factors tell."""
    return kfac.decompose(kernel, rank, seen(moments), damping)


def spectrum(kernel: Float[np.ndarray, "m n"], moments: Moments, damping: float = DAMPING) -> kfac.Spectrum:
    """Decomposes a kernel, for pairs of any rank."""
    return kfac.spectrum(kernel, seen(moments), damping)


def output_root(moments: Moments, damping: float = DAMPING) -> Float[np.ndarray, "n n"]:
    """`kfac.output_root` with this damping."""
    return kfac.output_root(moments, damping)


def losses(kernel: Float[np.ndarray, "m n"], moments: Moments, damping: float = DAMPING) -> Float[np.ndarray, " k"]:
    """The mean square change of the centred logits that each rank channel is worth, descending."""
    return kfac.losses(kernel, seen(moments), damping)
