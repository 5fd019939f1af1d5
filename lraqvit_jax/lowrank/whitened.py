"""Whitened truncation (DRONE, SVD-LLM, QERA-exact): the pair nearest in the layer's output.

With C = E[x xᵀ] = L Lᵀ over the layer's inputs x, the minimum of E |x W - x u v|² over pairs of rank r is
`u = L⁻ᵀ U_r`, `v = diag(S_r) V_r`, where `U S V = SVD(Lᵀ W)`.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg
from jaxtyping import Float

from lraqvit_jax.lowrank import svd
from lraqvit_jax.lowrank.svd import Pair

NEEDS_MOMENT = True


def decompose(
    kernel: Float[np.ndarray, "m n"],
    rank: int,
    moment: Float[np.ndarray, "m m"],
    damping: float = 1e-6,
    spectrum: Callable[[np.ndarray], svd.Spectrum] = svd.spectrum,
) -> Pair:
    """The pair of rank `rank` nearest to `kernel` in mean squared output.

    Args:
        kernel: dense kernel.
        rank: of the pair.
        moment: second moment C of the inputs.
        damping: share of C's mean diagonal added to the diagonal, so that directions no input has stay bounded.
        spectrum: computes the SVD, or remembers it (`spectra.Memo`).

    Returns:
        The pair, balanced: both factors carry the same total energy in each rank channel's direction.
    """
    root, inverse_transpose = _roots(np.asarray(moment, np.float64), damping)
    parts = spectrum(root.T @ np.asarray(kernel, np.float64))
    return balance(Pair(inverse_transpose(parts.left[:, :rank]), parts.values[:rank, None] * parts.right[:rank]))


def _roots(
    moment: Float[np.ndarray, "m m"], damping: float
) -> tuple[Float[np.ndarray, "m m"], Callable[[np.ndarray], np.ndarray]]:
    """A root L of the damped moment, and `x -> L⁻ᵀ x`. Cholesky; where rounding left the moment indefinite (LayerNorm
    outputs are singular), the eigenvectors with every eigenvalue raised to the damping."""
    mean = np.trace(moment) / len(moment)
    floor = damping * mean if mean > 0 else 1.0
    damped = moment.copy()
    damped[np.diag_indices(len(moment))] += floor
    try:
        lower = np.linalg.cholesky(damped)
        return lower, lambda x: scipy.linalg.solve_triangular(lower, x, lower=True, trans="T")
    except np.linalg.LinAlgError:
        values, vectors = scipy.linalg.eigh(moment)
        scale = np.sqrt(np.maximum(values, max(floor, 1e-12 * values[-1])))
        return vectors * scale, lambda x: (vectors / scale) @ x


def balance(pair: Pair) -> Pair:
    """Rescales each rank channel so that its column of u and its row of v have the same norm; the product stays.

    AdamW and the int8 grid both prefer factors of one size.
    """
    up, down = np.linalg.norm(pair.u, axis=0), np.linalg.norm(pair.v, axis=1)
    scale = np.sqrt(np.where((up > 0) & (down > 0), down / np.where(up > 0, up, 1), 1))
    return Pair(pair.u * scale, pair.v / scale[:, None])
