"""Losses: cross-entropy, the block-level distillation of Eq. 9-10, and those of logits and attention maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lraqvit_jax.base import trees


def labelled(batch: Mapping[str, Any]) -> Float[Array, " *parts"]:
    """How many images of a batch (the last axis) have a label; of mixed images, the sum of the shares that have one."""
    label = batch["label"]
    if "share" not in batch:
        return jnp.sum(label >= 0, -1, dtype=jnp.float32)
    parts = ((label, batch["share"]), (batch["other_label"], 1 - batch["share"]))
    return sum((jnp.sum(jnp.where(labels >= 0, weight, 0), -1) for labels, weight in parts), jnp.float32(0))


def _mean(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """`total / count`; 0 where there is nothing to count."""
    return total / jnp.where(count > 0, count, 1)


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    label_smoothing: float = 0.0,
    count: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy over the images that have a label (label >= 0); 0 where none has.

    `count` replaces their number: for a micro-batch, the mean of `labelled` over the micro-batches of a step.
    """
    count = labelled({"label": labels}) if count is None else count
    return _mean(jnp.sum(_each(logits, labels, label_smoothing)), count)


def mixed_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    other_labels: Int[Array, " batch"],
    share: Float[Array, " batch"],
    label_smoothing: float = 0.0,
    count: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean of `share * CE(label) + (1 - share) * CE(other_label)`, for images that are mixed of two.

    A part without a label (below 0) does not count: the mean is over the shares that have one, and 0 where none has.
    `count` replaces their sum, as in `cross_entropy`.
    """
    parts = ((labels, share), (other_labels, 1 - share))
    total = sum(
        (jnp.sum(weight * _each(logits, part_labels, label_smoothing)) for part_labels, weight in parts), jnp.float32(0)
    )
    if count is None:
        count = labelled({"label": labels, "other_label": other_labels, "share": share})
    return _mean(total, count)


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
    squares: Float[Array, " blocks"] | None = None,
) -> Float[Array, " blocks"]:
    """Eq. 9: mean squared error between the outputs of each encoder block, in float32.

    The paper leaves open whether blocks are summed or averaged; the caller averages.

    Args:
        teacher: outputs of its blocks.
        student: likewise.
        normalized: divides each block's error by the mean square of the teacher's output, for a relative error.
        squares: replaces those mean squares: for a micro-batch, those of the whole batch.
    """
    pairs = list(zip(teacher, student, strict=True))
    for pair in pairs:
        chex.assert_equal_shape(pair)
    wide = [(t.astype(jnp.float32), s.astype(jnp.float32)) for t, s in pairs]
    errors = jnp.stack([jnp.mean(jnp.square(t - s)) for t, s in wide])
    if not normalized:
        return errors
    return errors / (mean_squares(teacher) if squares is None else squares)


def mean_squares(features: Sequence[Float[Array, "batch tokens dim"]]) -> Float[Array, " blocks"]:
    """Mean square of every block's output, in float32."""
    return jnp.stack([jnp.mean(jnp.square(output.astype(jnp.float32))) for output in features])


def perturbation(student: Any, teacher: Any) -> Float[Array, ""]:
    """PELA's penalty (Guo et al. 2024) with its bound at 0: mean over pairs of `(max |u v - W|)²`, in float32.

    Args:
        student: parameters; a branch (du, dv) counts with its factors.
        teacher: parameters, W among them.
    """
    flat, kernels = trees.flatten(student), trees.flatten(teacher)
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
    return jnp.mean(optax.losses.kl_divergence_with_log_targets(log_q, log_p))


def logits_kl(
    teacher: Float[Array, "batch classes"], student: Float[Array, "batch classes"], temperature: float = 1.0
) -> Float[Array, ""]:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, in nats, mean over the batch, in float32.

    Hinton et al. 2015; T^2 keeps the size of the gradient whatever the temperature T.
    """
    return temperature**2 * _kl(*(logits.astype(jnp.float32) / temperature for logits in (teacher, student)))
