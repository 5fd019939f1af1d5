"""ASVD (Yuan et al. 2023): input channels weighted by how loud they are, before a plain SVD. Not optimal; a control.

`u = D⁻¹ U_r diag(S_r)`, `v = V_rᵀ` of `SVD(D W)` with `D = diag(E|x|^a)`, a = 1/2: whitening that takes the
channels for uncorrelated and their magnitude for their power.
"""

import numpy as np
from jaxtyping import Float

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import whitened

STATISTICS = "inputs"
CORRECTS_BIAS = False


def decompose(kernel: Float[np.ndarray, "m n"], rank: int, moments: Moments, strength: float = 0.5) -> Pair:
    """The pair of rank `rank` nearest to the kernel with its input channels so weighted."""
    return whitened.truncate(kernel, np.diag(moments.magnitude ** (2 * strength)), rank)
