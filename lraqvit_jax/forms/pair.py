"""The pair, two thin products for one, and the branch that training adds to its factors.

The paper's V1 (n, r) is our v transposed: both factors are ordinary kernels.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.forms import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """`W ~= u @ v`: a pytree of two matrices that meet in one dimension, the rank.

    Decompositions make it in float64 on the host; the branch of the reparam form is one too, (du, dv). The paper's U1
    is u, its V1 is v transposed.

    Attributes:
        u: what the input is multiplied by first.
        v: what comes after.
    """

    u: Float[np.ndarray, "m r"]
    v: Float[np.ndarray, "r n"]

    def check(self) -> "Pair":
        """Itself; ValueError where u and v are no two matrices that can be multiplied."""
        if self.u.ndim != 2 or self.v.ndim != 2 or self.u.shape[1] != self.v.shape[0]:
            raise ValueError(f"u {self.u.shape} and v {self.v.shape} are no pair")
        return self

    @property
    def rank(self) -> int:
        """How many channels are between the factors."""
        return self.u.shape[1]

    def product(self) -> Float[np.ndarray, "m n"]:
        """The kernel that it stands for."""
        return self.u @ self.v


def low_rank(params: Params, x: Float[Array, "rows m"]) -> Float[Array, "rows n"]:
    """Eq. 2-3: two thin products."""
    return (x @ params["u"].astype(x.dtype)) @ params["v"].astype(x.dtype)


def reparam(params: Params, x: Float[Array, "rows m"]) -> Float[Array, "rows n"]:
    """Eq. 4-6: the branch is added to the factors, so that training multiplies twice and not four times."""
    return low_rank({"u": params["u"] + params["du"], "v": params["v"] + params["dv"]}, x)
