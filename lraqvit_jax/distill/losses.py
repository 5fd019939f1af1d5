"""Losses: cross-entropy, and the block-level distillation of Eq. 9-10."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean cross-entropy over the images that have a label (label >= 0); 0 where none has."""
    known = labels >= 0
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    each = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    return jnp.sum(jnp.where(known, each, 0)) / jnp.maximum(1, jnp.sum(known))


def block_mse(
    teacher: Sequence[Float[Array, "batch tokens dim"]], student: Sequence[Float[Array, "batch tokens dim"]]
) -> Float[Array, " blocks"]:
    """Eq. 9: mean squared error between the outputs of each encoder block, in float32.

    The paper leaves open whether blocks are summed or averaged; the caller averages.
    """
    pairs = list(zip(teacher, student, strict=True))
    for pair in pairs:
        chex.assert_equal_shape(pair)
    return jnp.stack([jnp.mean(jnp.square(t.astype(jnp.float32) - s.astype(jnp.float32))) for t, s in pairs])
