"""What the benchmark knows of a model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A model, and how it is measured.

    Attributes:
        apply: pure, of `params` and a batch.
        params: of the checkpoint, arrays by their names there.
        batches: to calibrate on, none of them evaluated.
        metric: what `compress` is to keep of the outputs.
        evaluate: measures a function of a batch; the first number is what counts.
        calibrated_on: in words.
    """

    apply: Callable[[Any, Any], Any]
    params: Any
    batches: list[Any]
    metric: str
    evaluate: Callable[[Callable[[Any], Any]], Mapping[str, float]]
    calibrated_on: str


def layer_norm(params: Any, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    """Over the last axis, with `name`.weight and `name`.bias."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * params[f"{name}.weight"] + params[f"{name}.bias"]


def linear(params: Any, name: str, x: jax.Array) -> jax.Array:
    """`name`.weight in PyTorch's layout (out, in), and `name`.bias where there is one."""
    y = jnp.einsum("...i,oi->...o", x, params[f"{name}.weight"])
    return y + params[f"{name}.bias"] if f"{name}.bias" in params else y


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Attention of queries (b, t, h, d) to keys and values (b, s, h, d), as (b, t, h d); `mask` (b or 1, 1, t or 1, s)
    is true where a key is seen."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)
    return y.reshape(*y.shape[:2], -1)


def heads(x: jax.Array, size: int) -> jax.Array:
    """(b, t, h d) as (b, t, h, d)."""
    return x.reshape(*x.shape[:2], -1, size)
