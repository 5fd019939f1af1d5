"""The pair, two thin products for one, and the branch that training adds to its factors.

The paper's V1 (n, r) is our v transposed: both factors are ordinary kernels.
"""

from jaxtyping import Array, Float

from lraqvit_jax.forms import Params


def low_rank(params: Params, x: Float[Array, "rows m"]) -> Float[Array, "rows n"]:
    """Eq. 2-3: two thin products."""
    return (x @ params["u"].astype(x.dtype)) @ params["v"].astype(x.dtype)


def reparam(params: Params, x: Float[Array, "rows m"]) -> Float[Array, "rows n"]:
    """Eq. 4-6: the branch is added to the factors, so that training multiplies twice and not four times."""
    return low_rank({"u": params["u"] + params["du"], "v": params["v"] + params["dv"]}, x)
