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
    weights, rows, wanted = (gptq.near(array) for array in (kernel, rounded, target))
    second, errors = gptq.product(rows.T, rows), gptq.product(rows.T, wanted - gptq.multiply(rows, weights))
    corrected = correct(np.asarray(kernel, np.float64), second, errors)
    return gptq.solve(corrected, gptq.Factor.of(second), layer)


def correct(
    kernel: Float[np.ndarray, "m n"],
    second: Float[np.ndarray, "m m"],
    errors: Float[np.ndarray, "m n"],
    strength: float = STRENGTH,
) -> Float[np.ndarray, "m n"]:
    """`W + (X^T X + lambda)^-1 X^T (Y - X W)`.

    Args:
        kernel: W.
        second: X^T X.
        errors: X^T (Y - X W).
        strength: lambda, as a share of the mean diagonal of X^T X.
    """
    mean = np.trace(second) / len(second)
    damped = second + (strength * mean if mean > 0 else 1.0) * np.eye(len(second))
    return kernel + np.linalg.solve(damped, errors)
