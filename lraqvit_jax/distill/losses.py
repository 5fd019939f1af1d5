"""Losses: cross-entropy, the block-level distillation of Eq. 9-10, and those of logits and attention maps."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lraqvit_jax import tensors


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean cross-entropy over the images that have a label (label >= 0); 0 where none has."""
    return jnp.sum(_each(logits, labels, label_smoothing)) / jnp.maximum(1, jnp.sum(labels >= 0))


def mixed_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    other_labels: Int[Array, " batch"],
    share: Float[Array, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean of `share * CE(label) + (1 - share) * CE(other_label)`, for images that are mixed of two.

    A part without a label (below 0) does not count: the mean is over the shares that have one, and 0 where none has.
    """
    parts = ((labels, share), (other_labels, 1 - share))
    total = sum(jnp.sum(weight * _each(logits, one, label_smoothing)) for one, weight in parts)
    count = sum(jnp.sum(jnp.where(one >= 0, weight, 0)) for one, weight in parts)
    return total / jnp.where(count > 0, count, 1)


def _each(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], label_smoothing: float
) -> Float[Array, " batch"]:
    """Cross-entropy of every image in float32; 0 where it has no label."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return jnp.where(labels >= 0, optax.softmax_cross_entropy(logits.astype(jnp.float32), targets), 0)


def block_mse(
    teacher: Sequence[Float[Array, "batch tokens dim"]],
    student: Sequence[Float[Array, "batch tokens dim"]],
    normalized: bool = False,
) -> Float[Array, " blocks"]:
    """Eq. 9: mean squared error between the outputs of each encoder block, in float32.

    The paper leaves open whether blocks are summed or averaged; the caller averages.

    Args:
        teacher: outputs of its blocks.
        student: likewise.
        normalized: divides each block's error by the mean square of the teacher's output, for a relative error.
    """
    pairs = list(zip(teacher, student, strict=True))
    for pair in pairs:
        chex.assert_equal_shape(pair)
    wide = [(t.astype(jnp.float32), s.astype(jnp.float32)) for t, s in pairs]
    errors = jnp.stack([jnp.mean(jnp.square(t - s)) for t, s in wide])
    return errors / jnp.stack([jnp.mean(jnp.square(t)) for t, _ in wide]) if normalized else errors


def perturbation(student: Any, teacher: Any) -> Float[Array, ""]:
    """PELA's penalty (Guo et al. 2024) with its bound at 0: mean over pairs of `(max |u v - W|)²`, in float32.

    Args:
        student: parameters; a branch (du, dv) counts with its factors.
        teacher: parameters, W among them.
    """
    flat, kernels = tensors.flatten(student), tensors.flatten(teacher)
    worst = []
    for path in [name.removesuffix("/u") for name in flat if name.endswith("/u")]:
        u, v = (flat[f"{path}/{name}"] + flat.get(f"{path}/d{name}", 0) for name in "uv")
        worst.append(jnp.max(jnp.abs(u @ v - kernels[f"{path}/kernel"])))
    return jnp.mean(jnp.square(jnp.stack(worst)))


def attention_kl(
    teacher: Sequence[Float[Array, "... tokens tokens"]], student: Sequence[Float[Array, "... tokens tokens"]]
) -> Float[Array, ""]:
    """`KL(softmax(teacher) || softmax(student))` of the attention maps, in nats, mean over blocks, heads and queries.

    Args:
        teacher: attention of its blocks, before the softmax.
        student: likewise.
    """
    return jnp.mean(jnp.stack([_kl(t, s) for t, s in zip(teacher, student, strict=True)]))


def _kl(teacher: Float[Array, "... classes"], student: Float[Array, "... classes"]) -> Float[Array, ""]:
    """Divergence of softmax(student) from softmax(teacher), in float32, mean over the leading axes."""
    log_p, log_q = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (teacher, student))
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))


def logits_kl(
    teacher: Float[Array, "batch classes"], student: Float[Array, "batch classes"], temperature: float = 1.0
) -> Float[Array, ""]:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, in nats, mean over the batch, in float32.

    Hinton et al. 2015; T^2 keeps the size of the gradient whatever the temperature T.
    """
    return temperature**2 * _kl(*(logits.astype(jnp.float32) / temperature for logits in (teacher, student)))
