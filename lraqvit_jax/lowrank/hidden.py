"""Hidden units that the others of their layer can stand in for: structured optimal brain surgeon, in closed form.

Between fc1 and fc2 are h units with the covariance C; fc2 multiplies them by W, and the logits feel an error e of its
output by `eᵀ G e`. Taking unit j away, the others best make it good by `W -= C⁻¹[:, j] w_j / C⁻¹_jj` (Hassibi and Stork
1993), and what is lost is `w_j G w_jᵀ / C⁻¹_jj`. Unit by unit the cheapest goes, and C⁻¹ loses its row and column by
one outer product. What is left is a smaller layer, with the regression of what is gone upon it. (CORP, arXiv
2602.05243, removes units of transformers by ridge regression.)
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.plan.budget import loss_curve

DAMPING = 1e-4
"""Share of C's mean diagonal that is added to the diagonal."""
BLOCK = 64
"""Removals whose outer products are added up before they are applied: one product of matrices, not many of vectors."""


class Removal(NamedTuple):
    """In which order units go.

    Attributes:
        order: all units, the first to go first.
        losses: mean square change of the logits with 0, 1, ... h units left, falling to 0.
    """

    order: Int[np.ndarray, " h"]
    losses: Float[np.ndarray, " h+1"]

    def kept(self, width: int) -> Int[np.ndarray, " width"]:
        """The units that are left, rising."""
        return np.sort(self.order[len(self.order) - width :])


def removal(
    kernel: Float[np.ndarray, "h n"], moments: Moments, output_root: Float[np.ndarray, "n n"], damping: float = DAMPING
) -> Removal:
    """The order in which units go and what that loses, all widths in one pass.

    Args:
        kernel: W, of fc2.
        moments: of what fc2 reads.
        output_root: R with R Rᵀ = G; see `kfac.output_root`.
        damping: see DAMPING.
    """
    inverse = np.linalg.inv(_damped(moments.covariance, damping))
    weights = np.asarray(kernel, np.float64) @ output_root
    units, h = np.arange(len(weights)), len(weights)
    order, gone = np.empty(h, int), np.zeros(h)
    size, diagonal = np.sum(np.square(weights), 1), np.diag(inverse).copy()
    done = 0
    while done < h:
        # Of what is left, with the outer products of this block outstanding: inverse - u uᵀ, weights - u b.
        count = min(BLOCK, h - done)
        u, b = np.zeros((len(units), count)), np.zeros((count, weights.shape[1]))
        alive = np.ones(len(units), bool)
        for step in range(count):
            scores = np.where(alive, size / np.maximum(diagonal, np.finfo(float).tiny), np.inf)
            j = int(np.argmin(scores))
            order[done + step], gone[done + step], alive[j] = units[j], scores[j], False
            column = inverse[j] - u[:, :step] @ u[j, :step]
            row = weights[j] - u[j, :step] @ b[:step]
            pivot = max(column[j], np.finfo(float).tiny)
            ratio = column / pivot
            along = weights @ row - u[:, :step] @ (b[:step] @ row)
            size = np.maximum(size - 2 * ratio * along + np.square(ratio) * (row @ row), 0)
            diagonal = diagonal - column * ratio
            u[:, step], b[step] = column / np.sqrt(pivot), row / np.sqrt(pivot)
        inverse = (inverse - u @ u.T)[np.ix_(alive, alive)]
        weights = (weights - u @ b)[alive]
        units, size, diagonal = units[alive], np.sum(np.square(weights), 1), np.diag(inverse).copy()
        done += count
    return Removal(order, loss_curve(gone[::-1]))


def compensated(
    kernel: Float[np.ndarray, "h n"], moments: Moments, kept: Int[np.ndarray, " width"], damping: float = DAMPING
) -> tuple[Float[np.ndarray, "width n"], Float[np.ndarray, " n"]]:
    """fc2 for the units that are left, and what its bias gains: the regression of its outputs upon them."""
    kernel = np.asarray(kernel, np.float64)
    gone = np.setdiff1d(np.arange(len(kernel)), kept)
    covariance = _damped(moments.covariance, damping)
    solved = scipy.linalg.solve(covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, gone)], assume_a="pos")
    smaller = kernel[kept] + solved @ kernel[gone]
    return smaller, moments.mean @ kernel - moments.mean[kept] @ smaller


def _damped(covariance: Float[np.ndarray, "h h"], damping: float) -> Float[np.ndarray, "h h"]:
    damped = (covariance + covariance.T) / 2  # Summed in float32, its triangles differ; downdating would multiply that.
    damped[np.diag_indices(len(damped))] += max(damping * np.trace(damped) / len(damped), 1e-30)
    return damped
