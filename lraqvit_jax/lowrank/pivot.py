"""The gauge of a pair, fixed: an identity block in one factor, so that a pair stores what its product knows.

Any invertible M between the factors leaves `u v` alone: of the r (m + n) numbers of a pair, r² mean nothing. Choose r
rows of u as a basis, `u = P [I; C] u_S`, and `u v = P [I; C] (u_S v)` stores C (m - r, r) and u_S v (r, n):
`r (m + n - r)` numbers, as many multiply-accumulates a row, and the break-even is the full rank. That is the
interpolative decomposition; PIFA (ICML 2025, arXiv 2501.19090) uses it for language models.

The basis is that of a strong rank-revealing factorization (Gu and Eisenstat 1996): QR with pivoting, then exchanges
that each enlarge the volume of the basis, until no entry of C is above BOUND.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from lraqvit_jax.forms.pair import Pair

BOUND = 1.5
"""No coefficient is larger: what passes through C grows no more, in float32 or on an integer grid."""
TOLERANCE = 1e-12
"""Pivots below this share of the largest count as zero: the rows behind them are combinations of those before."""


class Interpolation(NamedTuple):
    """`rows[rest] = coefficients @ rows[basis]`, where `rest` are the rows that are not in the basis, in order.

    Attributes:
        basis: r of m rows, rising.
        coefficients: no entry is above BOUND.
    """

    basis: Int[np.ndarray, " r"]
    coefficients: Float[np.ndarray, "rest r"]


class Pivoted(NamedTuple):
    """A pair with an identity block.

    On the input side, `x u v = (x[basis] + x[rest] first) second`, first (m - r, r), second (r, n). On the output side,
    `(x u v)[basis] = x first`, `(x u v)[rest] = x first second`, first (m, r), second (r, n - r).
    """

    basis: Int[np.ndarray, " r"]
    first: Float[np.ndarray, "..."]
    second: Float[np.ndarray, "..."]


def interpolate(rows: Float[np.ndarray, "m r"], bound: float = BOUND) -> Interpolation:
    """A basis among m rows of length r, and how the others are made of it.

    Where the rows span less than r dimensions, those of the basis that add nothing have coefficients of zero.

    Args:
        rows: m >= r of them.
        bound: above 1.
    """
    rows = np.asarray(rows, np.float64)
    m, r = rows.shape
    triangle, order = scipy.linalg.qr(rows.T, mode="r", pivoting=True)
    pivots = np.abs(np.diag(triangle)) if m else np.zeros(0)
    rank = int(np.sum(pivots > TOLERANCE * max(pivots[0], np.finfo(float).tiny))) if len(pivots) else 0
    coefficients = np.zeros((m - r, r))
    coefficients[:, :rank] = scipy.linalg.solve_triangular(triangle[:rank, :rank], triangle[:rank, r:]).T
    basis, rest = order[:r].copy(), order[r:].copy()
    while coefficients.size:
        i, j = np.unravel_index(np.argmax(np.abs(coefficients)), coefficients.shape)
        if abs(coefficients[i, j]) <= bound:
            break
        coefficients = _exchanged(coefficients, int(i), int(j))
        basis[j], rest[i] = rest[i], basis[j]
    places, columns = np.argsort(rest), np.argsort(basis)
    return Interpolation(basis[columns], coefficients[places][:, columns])


def _exchanged(c: Float[np.ndarray, "rest r"], i: int, j: int) -> Float[np.ndarray, "rest r"]:
    """The coefficients once row i has taken the place of row j of the basis, and j its place."""
    pivot, row, column = c[i, j], c[i].copy(), c[:, j].copy()
    new = c - np.outer(column / pivot, row)
    new[:, j] = column / pivot
    new[i] = -row / pivot
    new[i, j] = 1 / pivot
    return new


def input_side(pair: Pair) -> Pivoted:
    """The same product with the identity in its first factor: r of the inputs pass through."""
    basis, coefficients = interpolate(pair.u)
    return Pivoted(basis, coefficients, pair.u[basis] @ pair.v)


def output_side(pair: Pair) -> Pivoted:
    """The same product with the identity in its second factor: r of the outputs are what is between the factors."""
    basis, coefficients = interpolate(pair.v.T)
    return Pivoted(basis, pair.u @ pair.v[:, basis], coefficients.T)
