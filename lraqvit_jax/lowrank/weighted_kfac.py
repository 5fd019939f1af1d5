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


def seen(moments: Moments) -> Moments:
    """The moments that the bias is corrected by."""
    return moments.weighted()


def decompose(kernel: Float[np.ndarray, "m n"], rank: int, moments: Moments) -> Pair:
    """The pair of rank `rank` that changes the logits least, as far as the two factors tell."""
    return spectrum(kernel, moments).cut(rank)


def losses(kernel: Float[np.ndarray, "m n"], moments: Moments) -> Float[np.ndarray, " k"]:
    """The mean square change of the centred logits that each rank channel is worth, descending."""
    return kfac.losses(kernel, seen(moments))


def spectrum(kernel: Float[np.ndarray, "m n"], moments: Moments) -> kfac.Spectrum:
    """Decomposes a kernel, for pairs of any rank."""
    return kfac.spectrum(kernel, seen(moments))
