"""GPTQ (Frantar et al. 2023): rows are rounded one after another, each error made good in the rows still to come.

What is made good is what the product puts out on the calibration inputs as the quantized model sees them, with the
Hessian `H = X^T X` of those inputs. Rows go in the order of falling diagonal of H.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int

from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.qarray import QArray

DAMPING = 0.01
"""Share of H's mean diagonal that is added to it."""
BLOCK = 128


def round_kernel(
    kernel: Float[Array, "m n"], rounded: Float[Array, "rows m"], target: Float[Array, "rows n"], layer: LayerPlan
) -> QArray:
    """Integers on the scales of `search_scale`, chosen row by row."""
    del target
    rows = near(rounded)
    return solve(np.asarray(kernel, np.float64), Factor.of(product(rows.T, rows)), layer)


def near(array: Array) -> Any:
    """An array where `product` multiplies it fastest: as it is on an accelerator, else NumPy's, in float64."""
    return array if on_accelerator() else np.asarray(array, np.float64)


def on_accelerator() -> bool:
    """Whether arrays are on one, which multiplies calibration inputs far faster than its host."""
    return jax.default_backend() != "cpu"


def product(a: Any, b: Any) -> Float[np.ndarray, "m n"]:
    """`a b` of what `near` gives. In float32 it is off by a ten-thousandth of DAMPING."""
    return np.asarray(multiply(a, b), np.float64)


def multiply(a: Any, b: Any) -> Any:
    """`a b` where they are."""
    return a @ b if isinstance(a, np.ndarray) else jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class Factor(NamedTuple):
    """What all kernels that read the same have in common.

    Attributes:
        weight: diagonal of the damped Hessian.
        order: of the rows, by falling diagonal.
        upper: Cholesky factor of its inverse, rows in that order.
    """

    weight: Float[np.ndarray, " m"]
    order: Int[np.ndarray, " m"]
    upper: Float[np.ndarray, "m m"]

    @classmethod
    def of(cls, hessian: Float[np.ndarray, "m m"]) -> "Factor":
        """Of `X^T X`, or a multiple of it."""
        hessian = damped(hessian)
        weight = np.diag(hessian).copy()
        order = np.argsort(-weight, kind="stable")
        inverse = scipy.linalg.cho_solve((np.linalg.cholesky(hessian[np.ix_(order, order)]), True), np.eye(len(order)))
        return cls(weight, order, scipy.linalg.cholesky(inverse))


def damped(hessian: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """The Hessian with DAMPING on its diagonal, for the channels that say nothing."""
    hessian, mean = hessian.copy(), np.trace(hessian) / len(hessian)
    hessian[np.diag_indices(len(hessian))] += DAMPING * mean if mean > 0 else 1.0
    return hessian


def search_scale(
    kernel: Float[np.ndarray, "m n"], weight: Float[np.ndarray, " m"], layer: LayerPlan
) -> Float[np.ndarray, "..."]:
    """For each scale of the kernel, the largest entry times the share that rounds to nearest with the smallest error,
    every row's square counted by `weight`."""
    bits, group = layer.kernel_bits, layer.group
    full = np.asarray(qarray.kernel_scale(jnp.asarray(kernel, jnp.float32), bits, group), np.float64)
    best, least = full, np.full(full.shape, np.inf)
    step = group or len(kernel)
    for share in np.linspace(1, 0.5, 21):
        scale = full * share
        spread = np.asarray(qarray.each_row(scale, len(kernel), group)) if group else scale
        limit = qarray.qmax(bits)
        error = weight[:, None] * np.square(np.clip(np.round(kernel / spread), -limit, limit) * spread - kernel)
        error = np.stack([error[start : start + step].sum(0) for start in range(0, len(kernel), step)])
        error = error if group else error[0]
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def solve(kernel: Float[np.ndarray, "m n"], factor: Factor, layer: LayerPlan) -> QArray:
    """Rounds row by row with the Cholesky factor of the inverse Hessian, in blocks of BLOCK rows."""
    m, limit = len(kernel), qarray.qmax(layer.kernel_bits)
    weight, order, upper = factor
    scale = search_scale(kernel, weight, layer)
    spread = np.asarray(qarray.each_row(scale, m, layer.group)) * np.ones_like(kernel)
    left, spread = kernel[order].copy(), spread[order]
    codes = np.empty_like(left)
    for start in range(0, m, BLOCK):
        stop = min(start + BLOCK, m)
        errors = np.empty((stop - start, kernel.shape[1]))
        for row in range(start, stop):
            codes[row] = np.clip(np.round(left[row] / spread[row]), -limit, limit)
            errors[row - start] = (left[row] - codes[row] * spread[row]) / upper[row, row]
            left[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], errors[row - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    values = np.empty_like(codes, dtype=np.int8)
    values[order] = codes
    packed = qarray.pack(jnp.asarray(values), layer.kernel_bits)
    return QArray(packed, jnp.asarray(scale, jnp.float32), layer.kernel_bits, layer.group, m).check()
