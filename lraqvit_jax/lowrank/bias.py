"""What a truncated layer's bias gains, so that the mean of its output stays."""

import numpy as np
from jaxtyping import Float

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.forms.pair import Pair


def bias_shift(kernel: Float[np.ndarray, "m n"], pair: Pair, moments: Moments) -> Float[np.ndarray, " n"]:
    """What the bias must gain so that the mean output stays: `E[t] W - E[x] u v` (AAFM's bias correction)."""
    target = moments.mean if moments.target_mean is None else moments.target_mean
    return target @ np.asarray(kernel, np.float64) - moments.mean @ pair.u @ pair.v
