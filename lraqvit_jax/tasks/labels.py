"""What a classifier's logits are measured by, whatever made them: top-k, and how near another model's answers are."""

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from lraqvit_jax.base.errors import UserError


def top_k(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], k: int = 1) -> float:
    """The percentage of examples whose label is among the k largest logits; of equal logits the lower class counts as
    the larger.

    Raises:
        UserError: shapes that do not agree, no example, a label that is no class, or k below 1.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or not logits.size or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"logits are of shape {logits.shape} and labels {labels.dtype} of {labels.shape}; give a whole number for "
            "each row of logits."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1] or k < 1:
        raise UserError(
            f"labels go from {labels.min()} to {labels.max()} and k is {k}; there are {logits.shape[1]:,} classes, "
            "and k is 1 or more."
        )
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :k]
    return float(100 * np.mean(np.any(order == labels[:, None], axis=1)))


def agreement(logits: Float[np.ndarray, "*n classes"], dense: Float[np.ndarray, "*n classes"]) -> float:
    """The percentage of examples of which both give the same answer.

    Raises:
        UserError: arrays that are empty or of other shapes than each other.
    """
    one, other = _same(logits, dense)
    return float(100 * np.mean(one.argmax(-1) == other.argmax(-1)))


def divergence(logits: Float[np.ndarray, "*n classes"], dense: Float[np.ndarray, "*n classes"]) -> float:
    """KL(dense || these) of the softmax, in nats, mean over the examples.

    Raises:
        UserError: as `agreement`.
    """
    one, other = (special.log_softmax(values.astype(np.float64), axis=-1) for values in _same(logits, dense))
    return float(np.mean(np.sum(np.exp(other) * (other - one), axis=-1)))


def _same(logits: np.ndarray, dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(logits), np.asarray(dense)
    if not one.size or not one.ndim or one.shape != other.shape:
        raise UserError(f"logits are of shape {one.shape} and the dense ones of {other.shape}; give as many of each.")
    return one, other
