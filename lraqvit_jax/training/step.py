"""What a training step minimizes: labels for the teacher, labels and the teacher's outputs for the student."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lraqvit_jax.training.loop import LossFn
from lraqvit_jax.training.losses import (
    attention_kl,
    block_mse,
    cross_entropy,
    labelled,
    logits_kl,
    mean_squares,
    mixed_cross_entropy,
    perturbation,
)


def supervised(model: nn.Module, label_smoothing: float = 0.0) -> LossFn:
    """Cross-entropy of a model on labelled images."""

    def loss_fn(params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        del frozen
        logits: Any = model.apply({"params": params}, batch["image"])
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return _cross_entropy(logits, batch, label_smoothing), {"accuracy": accuracy}

    return loss_fn


def outputs(model: nn.Module, params: Any, images: Any, attention: bool) -> Any:
    """`((logits, outputs of the blocks), attention maps before their softmax)`; no maps where none are asked for."""
    found = model.apply({"params": params}, images, return_features=True, mutable=["attention"] if attention else False)
    return found if attention else (found, {})


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
    last_block: bool = False,
    delta: float = 0.0,
    bound: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossFn:
    """Eq. 10: `alpha * CE + beta * L_kd`, L_kd the mean over blocks of Eq. 9; and, which are ours,
    `gamma * KL` of the logits and `delta * KL` of the attention maps.

    Args:
        student: the compressed model; its parameters are trained.
        teacher: the dense model; its parameters come as the step's `frozen` argument.
        alpha: weight of the cross-entropy.
        beta: weight of the block distillation. Where beta, gamma and delta are 0, the teacher does not run.
        gamma: weight of the divergence of the student's logits from the teacher's; see `losses.logits_kl`.
        temperature: of that divergence.
        teacher_forced: False compares the two networks each on its own stream; True feeds each student block the
            teacher's input of that block.
        normalized: makes each block's term a relative error; see `losses.block_mse`.
        last_block: compares the outputs of the last block alone, as GFM does (Yu and Wu 2023).
        delta: weight of the divergence of the attention maps, each network on its own stream; see
            `losses.attention_kl`.
        bound: weight of the distance of the pairs from the teacher's kernels; see `losses.perturbation`.
        label_smoothing: of the cross-entropy.
    """

    def loss_fn(params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables, images = {"params": params}, batch["image"]
        (logits, features), maps = outputs(student, params, images, delta > 0)
        ce = _cross_entropy(logits, batch, label_smoothing)
        metrics = {"ce": ce, "accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"])}
        loss = alpha * ce
        if bound:
            metrics["perturbation"] = perturbation(params, jax.lax.stop_gradient(frozen))
            loss += bound * metrics["perturbation"]
        if not (beta or gamma or delta):
            return loss, metrics
        (wanted, targets), attended = jax.lax.stop_gradient(outputs(teacher, frozen, images, delta > 0))
        if beta:
            if teacher_forced:
                features = student.apply(variables, images, targets, method="forced")
            if last_block:
                targets, features = targets[-1:], features[-1:]
            kd = block_mse(targets, features, normalized, batch.get("squares"))
            metrics |= {"kd": jnp.mean(kd)} | {f"kd_{index}": value for index, value in enumerate(kd)}
            loss += beta * metrics["kd"]
        if gamma:
            metrics["kl"] = logits_kl(wanted, logits, temperature)
            loss += gamma * metrics["kl"]
        if delta:
            metrics["attention_kl"] = attention_kl(jax.tree.leaves(attended), jax.tree.leaves(maps))
            loss += delta * metrics["attention_kl"]
        return loss, metrics

    return loss_fn


def _cross_entropy(logits: jax.Array, batch: Any, label_smoothing: float) -> jax.Array:
    """Of plain or mixed images; see `lraqvit_jax.data.mix`."""
    count = batch.get("count")
    if "share" in batch:
        return mixed_cross_entropy(logits, batch["label"], batch["other_label"], batch["share"], label_smoothing, count)
    return cross_entropy(logits, batch["label"], label_smoothing, count)


def shared(teacher: nn.Module | None, normalized: bool, last_block: bool) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """What a micro-batch takes from all of a step, so that the mean of their losses is the loss of the whole batch.

    Args:
        teacher: as in `distillation`; None for `supervised`.
        normalized: as there. The mean squares of the teacher's outputs take a second pass of the teacher.
        last_block: as there.

    Returns:
        `(frozen, batches) -> {"count": how many labels a micro-batch has on average, "squares": mean squares}`,
        micro-batches along the first axis of `batches`. See `losses.cross_entropy`, `losses.block_mse`.
    """

    def entries(frozen: Any, batches: Any) -> dict[str, jax.Array]:
        found = {"count": jnp.mean(labelled(batches))}
        if teacher is None or not normalized:
            return found

        def squares(images: Any) -> jax.Array:
            features = outputs(teacher, frozen, images, False)[0][1]
            return mean_squares(features[-1:] if last_block else features)

        return found | {"squares": jnp.mean(jax.lax.map(squares, batches["image"]), 0)}

    return entries
