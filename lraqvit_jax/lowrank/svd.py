"""Truncated SVD, Eq. 2-3: the nearest pair of rank r to the kernel itself (Eckart-Young)."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float


class Pair(NamedTuple):
    """`W ~= u @ v`: u (m, r) and v (r, n), float64. The paper's U1 is u, its V1 is v transposed."""

    u: Float[np.ndarray, "m r"]
    v: Float[np.ndarray, "r n"]


class Spectrum(NamedTuple):
    """`W = left @ diag(values) @ right`, values descending, k = min(m, n) of them, float64."""

    left: Float[np.ndarray, "m k"]
    values: Float[np.ndarray, " k"]
    right: Float[np.ndarray, "k n"]


def spectrum(kernel: Float[np.ndarray, "m n"]) -> Spectrum:
    """The thin SVD, in float64 on the host. Each singular pair has the sign that makes its largest left entry positive,
    so that a result does not depend on the LAPACK build."""
    left, values, right = scipy.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    signs = np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(left.shape[1])])
    signs[signs == 0] = 1
    return Spectrum(left * signs, values, right * signs[:, None])


def truncate(parts: Spectrum, rank: int) -> Pair:
    """Eq. 2-3: keeps `rank` singular triples, the square root of each value on both sides."""
    root = np.sqrt(parts.values[:rank])
    return Pair(parts.left[:, :rank] * root, root[:, None] * parts.right[:rank])


def decompose(kernel: Float[np.ndarray, "m n"], rank: int, moment: np.ndarray | None = None) -> Pair:
    """Eq. 2-3: the nearest pair of rank `rank`. Needs no statistics; `moment` is ignored."""
    del moment
    return truncate(spectrum(kernel), rank)


NEEDS_MOMENT = False
