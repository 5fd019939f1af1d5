"""Pivoted forms: an identity block in one factor, so that r of the inputs, or of the outputs, are copied.

What is stored of the block is which channels it copies: `basis`, int16, rising; all others follow from it. A copy costs
no multiplication: the products are those of the cost, `r (m + n - r)` for a pair, `width (m - width)` for a head.

    input      z = x[basis] + x[rest] u,  y = z v         u (m - r, r), v (r, n), basis (r,)
    output     z = x u,  y[basis] = z,  y[rest] = z v     u (m, r), v (r, n - r), basis (r,)
    leading    z = x u,  y = [z, z v]                     u (m, r), v (r, n - r)
    by head    y_h = x[basis_h] + x[rest_h] kernel_h      kernel (m - width, heads width), basis (heads, width)
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lraqvit_jax.forms import Params

Rows = Float[Array, "rows m"]


def _at_once(basis: Array) -> contextlib.AbstractContextManager[None]:
    """What follows from a basis that is known while a model is traced, as for a LiteRT file, is computed then: a
    runtime that folds no constants would do it for every image."""
    return contextlib.nullcontext() if isinstance(basis, jax.core.Tracer) else jax.ensure_compile_time_eval()


def rest_of(basis: Int[Array, "... r"], count: int) -> Int[Array, "... rest"]:
    """The numbers below `count` that are not in the basis, rising. (No sort: the i-th of them is i plus how many of the
    basis come before it.)"""
    r = basis.shape[-1]
    with _at_once(basis):
        index, gaps = jnp.arange(count - r), basis.astype(jnp.int32) - jnp.arange(r)
        return index + jnp.sum(gaps[..., None, :] <= index[:, None], -1, dtype=jnp.int32)


def places_of(basis: Int[Array, " r"], count: int) -> Int[Array, " count"]:
    """Where each of `count` channels is among [basis, rest]."""
    with _at_once(basis):
        r, index = basis.shape[-1], jnp.arange(count)
        before = jnp.sum(basis < index[:, None], -1, dtype=jnp.int32)
        inside = jnp.any(basis == index[:, None], -1)
        return jnp.where(inside, before, r + index - before)


def take(rows: Rows, channels: Int[Array, " k"]) -> Float[Array, "rows k"]:
    """Some channels of each row. Through the transpose, whose rows lie in one piece: on XLA's CPU backend that takes
    half the time."""
    return rows.T[channels].T


def copied(x: Array, basis: Any, multiply: Any) -> Array:
    """`x[basis] + multiply(x, the others)`, of one basis (r,) or one for each head (heads, width): x (..., m)."""
    bases = basis if basis.ndim > 1 else basis[None]
    rows = x.reshape(-1, x.shape[-1])
    same = take(rows, bases.reshape(-1))
    return same.reshape(*x.shape[:-1], -1) + multiply(x, inputs=rest_of(bases, x.shape[-1]))


def by_inputs(x: Rows, kernel: Float[Array, "rest n"], inputs: Int[Array, "heads rest"]) -> Float[Array, "rows n"]:
    """What the kernel of each head makes of its own inputs, head beside head."""
    kernels = jnp.split(kernel.astype(x.dtype), len(inputs), -1)
    return jnp.concatenate([take(x, rest) @ part for rest, part in zip(inputs, kernels, strict=True)], -1)


def joined(z: Array, others: Array, basis: Int[Array, " r"] | None) -> Array:
    """[z, others], in the order that the basis gives the outputs: (..., n)."""
    y = jnp.concatenate([z, others], -1)
    if basis is None:
        return y
    rows = take(y.reshape(-1, y.shape[-1]), places_of(basis, y.shape[-1]))
    return rows.reshape(y.shape)


def between(params: Params, x: Rows, basis: str) -> Float[Array, "rows r"]:
    """What is between the factors of a pair with that basis."""
    if basis != "input":
        return x @ params["u"].astype(x.dtype)
    return copied(x, params["basis"], functools.partial(by_inputs, kernel=params["u"]))


def input_side(params: Params, x: Rows) -> Float[Array, "rows n"]:
    """r of the inputs pass through the first factor."""
    return between(params, x, "input") @ params["v"].astype(x.dtype)


def output_side(params: Params, x: Rows) -> Float[Array, "rows n"]:
    """r of the outputs are what is between the factors; the first ones, where no basis says which."""
    z = between(params, x, "output")
    return joined(z, z @ params["v"].astype(x.dtype), params.get("basis"))


def by_head(params: Params, x: Rows) -> Float[Array, "rows n"]:
    """Each head copies `width` of the inputs."""
    return copied(x, params["basis"], functools.partial(by_inputs, kernel=params["kernel"]))


PAIRS = {"input": input_side, "output": output_side, "leading": output_side}


def pivoted(basis: str, rank: int) -> Any:
    """What the form computes with that basis; rank 0 is by head."""
    return PAIRS[basis] if rank else by_head
