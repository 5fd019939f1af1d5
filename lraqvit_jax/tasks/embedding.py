"""What embeddings are measured by: cosines to the dense model's, nearest neighbours, and rank correlation with scores.

Vectors are rows (n, d) of any length; only their directions count.
"""

import numpy as np
from jaxtyping import Float
from scipy import stats

from lraqvit_jax.base.errors import UserError


def cosines(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """The cosine of each row of `first` with that row of `second`; against the dense model's, how true each still is.

    Raises:
        UserError: arrays that are empty or of other shapes than each other, or a row of zeros.
    """
    one, other = _directions(first, "first"), _directions(second, "second")
    _check_same(one, other)
    return np.sum(one * other, axis=1)


def neighbour_agreement(vectors: Float[np.ndarray, "n d"], dense: Float[np.ndarray, "n d"]) -> float:
    """The percentage of rows whose nearest other row, by cosine, is the same one in both.

    Raises:
        UserError: as `cosines`, or fewer than three rows, of which the nearest other one says nothing.
    """
    one, other = _directions(vectors, "vectors"), _directions(dense, "dense")
    if len(one) != len(other) or len(one) < 3:
        raise UserError(
            f"There are {len(one)} vectors and {len(other)} of the dense model; give as many of each, from 3."
        )
    return float(100 * np.mean(_nearest(one) == _nearest(other)))


def spearman(similarities: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation in [-1, 1], equal values at their mean rank: for semantic textual similarity, of the
    cosines of sentence pairs with the scores that people gave them (Cer et al., SemEval 2017, task 1; Reimers, Beyer,
    Gurevych, COLING 2016, on why ranks).

    Raises:
        UserError: other than two lists of one length, from 2, or one whose values are all the same.
    """
    one, other = np.asarray(similarities, np.float64), np.asarray(scores, np.float64)
    if one.ndim != 1 or one.shape != other.shape or len(one) < 2:
        raise UserError(
            f"similarities are of shape {one.shape} and scores of {other.shape}; give two lists of one length, from 2."
        )
    for name, values in (("similarities", one), ("scores", other)):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise UserError(f"The {name} are all the same, or not all numbers: there is no order to correlate.")
    return float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1])


def _directions(vectors: np.ndarray, name: str) -> np.ndarray:
    """Rows of length 1, float64."""
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or not vectors.size:
        raise UserError(f"{name} is of shape {vectors.shape}; give vectors as rows, (n, d).")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all((lengths > 0) & np.isfinite(lengths)):
        raise UserError(f"{name} has a row that is zero or not all numbers, and so no direction.")
    return vectors / lengths


def _check_same(one: np.ndarray, other: np.ndarray) -> None:
    if one.shape != other.shape:
        raise UserError(f"The vectors are of shapes {one.shape} and {other.shape}; give two arrays of one shape.")


def _nearest(directions: np.ndarray) -> np.ndarray:
    """The nearest other row of each."""
    similar = directions @ directions.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)
