"""Truncated SVD, Eq. 2-3: the nearest pair of rank r to the kernel itself (Eckart-Young)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lraqvit_jax.forms.pair import Pair


class Spectrum(NamedTuple):
    """`W = left @ diag(values) @ right`, values descending, k = min(m, n) of them, float64."""

    left: Float[np.ndarray, "m k"]
    values: Float[np.ndarray, " k"]
    right: Float[np.ndarray, "k n"]


def spectrum(kernel: Float[np.ndarray, "m n"]) -> Spectrum:
    """The thin SVD, in float64 on the host. Each singular pair has the sign that makes its largest left entry positive,
    so that a result does not depend on the LAPACK build."""
    kernel = np.asarray(kernel, np.float64)
    wide = kernel.shape[0] < kernel.shape[1]
    # LAPACK takes 15 to 20 % less time for a tall matrix. NumPy, unlike SciPy, lets other threads run meanwhile.
    left, values, right = np.linalg.svd(kernel.T if wide else kernel, full_matrices=False)
    left, right = (right.T, left.T) if wide else (left, right)
    signs = np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(left.shape[1])])
    signs[signs == 0] = 1
    return Spectrum(left * signs, values, right * signs[:, None])


def truncate(parts: Spectrum, rank: int) -> Pair:
    """Eq. 2-3: keeps `rank` singular triples, the square root of each value on both sides."""
    root = np.sqrt(parts.values[:rank])
    return Pair(parts.left[:, :rank] * root, root[:, None] * parts.right[:rank]).check()


def decompose(
    kernel: Float[np.ndarray, "m n"],
    rank: int,
    moments: Any = None,
    spectrum: Callable[[np.ndarray], Spectrum] = spectrum,
) -> Pair:
    """Eq. 2-3: the nearest pair of rank `rank`. Needs no statistics; `moments` is ignored.

    `spectrum` computes the SVD: the function above, or one that remembers (`spectra.Memo`).
    """
    del moments
    return truncate(spectrum(kernel), rank)


STATISTICS = "none"
CORRECTS_BIAS = False
