"""One layer as a pair, by any decomposition."""

import inspect
from collections.abc import Callable, Mapping

import numpy as np

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank import decomposition, svd
from lraqvit_jax.lowrank.bias import bias_shift

Layer = dict[str, np.ndarray]
Spectrum = Callable[[np.ndarray], svd.Spectrum]


def pair(
    name: str, layer: Mapping[str, np.ndarray], rank: int, moments: Moments | None, spectrum: Spectrum = svd.spectrum
) -> Layer:
    """One dense layer {kernel, bias} as a pair {u, v, bias}, float32; a layer without a bias stays without.

    Args:
        name: of the decomposition.
        layer: dense.
        rank: of the pair.
        moments: what the decomposition wants; see `lowrank.decomposition`.
        spectrum: computes the SVD, or remembers it.
    """
    module, kernel = decomposition(name), np.asarray(layer["kernel"], np.float64)
    options = {"spectrum": spectrum} if "spectrum" in inspect.signature(module.decompose).parameters else {}
    made = module.decompose(kernel, rank, moments, **options)
    factors = {"u": made.u.astype(np.float32), "v": made.v.astype(np.float32)}
    if "bias" in layer:
        seen = getattr(module, "seen", lambda moments: moments)
        shift = 0 if moments is None or not module.CORRECTS_BIAS else bias_shift(kernel, made, seen(moments))
        factors["bias"] = np.asarray(layer["bias"] + shift, np.float32)
    return factors
