"""What a training step minimizes: labels for the teacher, labels and the teacher's outputs for the student."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lraqvit_jax.distill.losses import block_mse, cross_entropy, logits_kl, mixed_cross_entropy
from lraqvit_jax.train import LossFn


def supervised(model: nn.Module, label_smoothing: float = 0.0) -> LossFn:
    """Cross-entropy of a model on labelled images."""

    def loss_fn(params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        del frozen
        logits: Any = model.apply({"params": params}, batch["image"])
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return _cross_entropy(logits, batch, label_smoothing), {"accuracy": accuracy}

    return loss_fn


def distillation(
    student: nn.Module,
    teacher: nn.Module,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.0,
    temperature: float = 1.0,
    teacher_forced: bool = False,
    normalized: bool = False,
    label_smoothing: float = 0.0,
) -> LossFn:
    """Eq. 10: `alpha * CE + beta * L_kd`, L_kd the mean over blocks of Eq. 9; and `gamma * KL`, which is ours.

    Args:
        student: the compressed model; its parameters are trained.
        teacher: the dense model; its parameters come as the step's `frozen` argument.
        alpha: weight of the cross-entropy.
        beta: weight of the block distillation. Where beta and gamma are 0, the teacher does not run.
        gamma: weight of the divergence of the student's logits from the teacher's; see `losses.logits_kl`.
        temperature: of that divergence.
        teacher_forced: False compares the two networks each on its own stream; True feeds each student block the
            teacher's input of that block.
        normalized: makes each block's term a relative error; see `losses.block_mse`.
        label_smoothing: of the cross-entropy.
    """

    def loss_fn(params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables, images = {"params": params}, batch["image"]
        logits: Any
        features: Any
        logits, features = student.apply(variables, images, return_features=True)
        ce = _cross_entropy(logits, batch, label_smoothing)
        metrics = {"ce": ce, "accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"])}
        loss = alpha * ce
        if not beta and not gamma:
            return loss, metrics
        wanted: Any
        targets: Any
        wanted, targets = jax.lax.stop_gradient(teacher.apply({"params": frozen}, images, return_features=True))
        if beta:
            if teacher_forced:
                features = student.apply(variables, images, targets, method="forced")
            kd = block_mse(targets, features, normalized)
            metrics |= {"kd": jnp.mean(kd)} | {f"kd_{index}": value for index, value in enumerate(kd)}
            loss += beta * metrics["kd"]
        if gamma:
            metrics["kl"] = logits_kl(wanted, logits, temperature)
            loss += gamma * metrics["kl"]
        return loss, metrics

    return loss_fn


def _cross_entropy(logits: jax.Array, batch: Any, label_smoothing: float) -> jax.Array:
    """Of plain or mixed images; see `lraqvit_jax.data.mix`."""
    if "share" in batch:
        return mixed_cross_entropy(logits, batch["label"], batch["other_label"], batch["share"], label_smoothing)
    return cross_entropy(logits, batch["label"], label_smoothing)
