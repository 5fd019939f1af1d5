"""The reparameterizable branch, Eq. 4-8: its initializations, and the exact merge.

In the paper's letters u = U1, v = V1ᵀ, du = U2, dv = V2ᵀ; the branch adds `u dv + du v + du dv` to the product.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import svd

Branch = Pair
"""du (m, r) and dv (r, n)."""


Spectrum = Callable[[np.ndarray], svd.Spectrum]


def wr(kernel: np.ndarray, rank: int, rng: np.random.Generator, spectrum: Spectrum = svd.spectrum) -> Branch:
    """Weight reconstruction as printed, Eq. 7-8: `V2 <- (diag(Sdel) Vdel)ᵀ`, `U2 <- 0`.

    The discarded part has k - r directions and the branch r: the leading min(r, k - r) are taken, the rest is zero.
    It does not reconstruct the kernel: against truncation alone it adds `sum_j S_j S_{r+j}²` to the squared error,
    against what the paper's appendix says.
    """
    parts, start = spectrum(kernel), zero(kernel, rank, rng)
    dropped = parts.values[rank : 2 * rank, None] * parts.right[rank : 2 * rank]
    start.v[: len(dropped)] = dropped
    return start


def zero(kernel: np.ndarray, rank: int, rng: np.random.Generator, spectrum: Spectrum = svd.spectrum) -> Branch:
    """Both branch tensors zero: the pair starts at the decomposition."""
    del rng, spectrum
    return Branch(np.zeros((kernel.shape[0], rank)), np.zeros((rank, kernel.shape[1])))


def random(kernel: np.ndarray, rank: int, rng: np.random.Generator, spectrum: Spectrum = svd.spectrum) -> Branch:
    """The paper's control, `V2 ~ N(0, 1)`, which wrecks the layer."""
    del spectrum
    return Branch(zero(kernel, rank, rng).u, rng.standard_normal((rank, kernel.shape[1])))


def small_random(kernel: np.ndarray, rank: int, rng: np.random.Generator, spectrum: Spectrum = svd.spectrum) -> Branch:
    """`V2` normal with the standard deviation of WR's: as large a step away, in no particular direction."""
    std = wr(kernel, rank, rng, spectrum).v.std()
    return Branch(zero(kernel, rank, rng).u, std * rng.standard_normal((rank, kernel.shape[1])))


INITIALIZATIONS = {function.__name__: function for function in (wr, zero, random, small_random)}


def branch(
    name: str,
    kernel: Float[np.ndarray, "m n"],
    rank: int,
    rng: np.random.Generator,
    spectrum: Spectrum = svd.spectrum,
) -> Branch:
    """Makes the branch of a layer.

    Args:
        name: "wr", "zero", "random" or "small_random".
        kernel: dense.
        rank: of the pair.
        rng: for the random ones.
        spectrum: computes the SVD, for those that need it, or remembers it (`spectra.Memo`).

    Raises:
        UserError: unknown name.
    """
    if name not in INITIALIZATIONS:
        raise UserError(f"There is no branch initialization {name!r}; {nearest(name, INITIALIZATIONS)}")
    return INITIALIZATIONS[name](kernel, rank, rng, spectrum)


def form(name: str) -> str:
    """The form that a run with this branch trains in.

    "none" trains the plain pair, and every initialization above the branch.

    Raises:
        UserError: unknown name.
    """
    if name not in (*INITIALIZATIONS, "none"):
        raise UserError(f"There is no branch {name!r}; {nearest(name, (*INITIALIZATIONS, 'none'))}")
    return "low_rank" if name == "none" else "reparam"


def merge(params: Mapping[str, Array]) -> dict[str, Array]:
    """Eq. 6: `u + du` and `v + dv` replace all four. The sums are those the training forward makes: outputs are equal.

    Args:
        params: of one layer with a branch; what is not a factor (the bias) passes through.
    """
    merged = {name: value for name, value in params.items() if name not in ("du", "dv")}
    return merged | {"u": params["u"] + params["du"], "v": params["v"] + params["dv"]}


def product(pair: Pair, extra: Branch) -> Float[np.ndarray, "m n"]:
    """The kernel that a layer with this branch applies, `(u + du) (v + dv)`."""
    return (pair.u + extra.u) @ (pair.v + extra.v)
