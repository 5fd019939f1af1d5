"""Ridge correction and GPTQ: the kernel first makes good what rounding the activations does (ERQ, Zhong et al. 2024).

`W* = argmin ||X^ W* - Y||² + lambda ||W* - W||²` has a closed form, where X^ is what the quantized model reads and Y
what the float model puts out; for the second factor of a pair that holds all errors of the first. W* is then rounded
by GPTQ.
"""

import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant.qarray import QArray
from lraqvit_jax.quant.rounding import gptq

STRENGTH = 0.03
"""lambda, as a share of the mean diagonal of `X^T X`."""


def round_kernel(
    kernel: Float[Array, "m n"], rounded: Float[Array, "rows m"], target: Float[Array, "rows n"], layer: LayerPlan
) -> QArray:
    """Integers of the corrected kernel."""
    arrays = (np.asarray(array, np.float64) for array in (kernel, rounded, target))
    corrected = correct(*arrays)  # type: ignore[arg-type]
    return gptq.round_kernel(corrected, rounded, target, layer)  # type: ignore[arg-type]


def correct(
    kernel: Float[np.ndarray, "m n"],
    rounded: Float[np.ndarray, "rows m"],
    target: Float[np.ndarray, "rows n"],
    strength: float = STRENGTH,
) -> Float[np.ndarray, "m n"]:
    """`W + (X^T X + lambda)^-1 X^T (Y - X W)`."""
    second = rounded.T @ rounded
    mean = np.trace(second) / len(second)
    second[np.diag_indices(len(second))] += strength * mean if mean > 0 else 1.0
    return kernel + np.linalg.solve(second, rounded.T @ (target - rounded @ kernel))
