"""The dense form: kernel (m, n)."""

from jaxtyping import Array, Float

from lraqvit_jax.forms import Params


def dense(params: Params, x: Float[Array, "rows m"]) -> Float[Array, "rows n"]:
    """`x @ kernel`."""
    return x @ params["kernel"].astype(x.dtype)
