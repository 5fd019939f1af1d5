"""What two models' answers to the same images say of the difference of their accuracies, and how surely.

Both are asked the same images, so what they agree on says nothing: the difference is that of the images which one has
right and the other wrong, and its interval is far narrower than that of two separate accuracies.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from lraqvit_jax.base.errors import UserError

CONFIDENCE = 0.95


class Drop(NamedTuple):
    """How many points of accuracy are lost, in percent of the images.

    Attributes:
        drop: what these images say; below 0 where accuracy was gained.
        low: lower end of the interval.
        high: upper end.
        images: how many.
    """

    drop: float
    low: float
    high: float
    images: int


def difference(lost: int, gained: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The middle of the adjusted Wald interval of the difference of two paired proportions, and its half, as shares
    (Bonett, Price, J. Educ. Behav. Stat. 37, 2012, equation 5): p = (lost + 1) / (n + 2), q = (gained + 1) / (n + 2),
    p - q +- z sqrt((p + q - (p - q)^2) / (n + 2)).

    Args:
        lost: images that the first model alone has right.
        gained: those that the second one alone has.
        images: n, all of them.
        confidence: of the interval, both ends together.
    """
    p, q = (lost + 1) / (images + 2), (gained + 1) / (images + 2)
    half = stats.norm.ppf((1 + confidence) / 2) * np.sqrt((p + q - (p - q) ** 2) / (images + 2))
    return p - q, float(half)


def drop(dense: Bool[np.ndarray, " n"], small: Bool[np.ndarray, " n"], confidence: float = CONFIDENCE) -> Drop:
    """How much less often the small model is right, with the interval of `difference`.

    Args:
        dense: whether the dense model is right on each image.
        small: the same of the small one.
        confidence: of the interval, both ends together.

    Raises:
        UserError: no image, or not as many of both.
    """
    dense, small = np.asarray(dense, bool), np.asarray(small, bool)
    if dense.shape != small.shape or dense.ndim != 1 or not dense.size:
        raise UserError(
            f"There are answers of shape {dense.shape} and {small.shape}; give both models the same images."
        )
    n, lost, gained = dense.size, int(np.sum(dense & ~small)), int(np.sum(small & ~dense))
    middle, half = difference(lost, gained, n, confidence)
    return Drop(100 * (lost - gained) / n, 100 * max(-1, middle - half), 100 * min(1, middle + half), n)


def mean(values: Float[np.ndarray, " n"], confidence: float = CONFIDENCE) -> Drop:
    """The mean of the same quantity of every image, in points, with the interval of Student's t.

    Args:
        values: of each image.
        confidence: of the interval, both ends together.
    """
    n, middle = len(values), float(np.mean(values))
    if n < 2:
        return Drop(middle, middle - 100, middle + 100, n)
    half = quantile(n, confidence) * float(np.std(values, ddof=1) / np.sqrt(n))
    return Drop(middle, middle - half, middle + half, n)


def quantile(images: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors the mean of as many images may be off, by Student's t."""
    return float(stats.t.ppf((1 + confidence) / 2, images - 1))
