"""What a training step minimizes: labels for the teacher, the terms of a distillation for the student."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lraqvit_jax.options.training import Distillation
from lraqvit_jax.training.loop import LossFn
from lraqvit_jax.training.outputs import outputs
from lraqvit_jax.training.terms import View, active, cross_entropy, needs, terms

Shared = Callable[[Any, Any], dict[str, jax.Array]]


def supervised(model: nn.Module, label_smoothing: float = 0.0) -> LossFn:
    """Cross-entropy of a model on labelled images."""

    def loss_fn(params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        del frozen
        logits: Any = model.apply({"params": params}, batch["image"])
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return cross_entropy.of_batch(logits, batch, label_smoothing), {"accuracy": accuracy}

    return loss_fn


def distillation(student: nn.Module, teacher: Any, options: Distillation, label_smoothing: float = 0.0) -> LossFn:
    """Eq. 10, `alpha * CE + beta * L_kd` with L_kd the mean over blocks of Eq. 9, and the other terms of `terms/`.

    The cross-entropy is computed in any case, for the log.

    Args:
        student: the compressed model; its parameters are trained.
        teacher: the dense model; its parameters come as the step's `frozen` argument. It runs where a term in use looks
            at its outputs.
        options: weights of the terms, and how they are computed.
        label_smoothing: of the cross-entropy.
    """
    chosen = [term for term in terms() if term is cross_entropy or term in active(options)]
    looks_at = needs(options)

    def loss_fn(params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        images, maps = batch["image"], "attention" in looks_at
        student_outputs = outputs(student, params, images, maps)
        constant = jax.lax.stop_gradient(frozen) if "params" in looks_at else None
        answer = None
        if "outputs" in looks_at:
            answer = jax.lax.stop_gradient(outputs(teacher, frozen, images, maps))
        view = View(options, batch, student, params, student_outputs, constant, answer, label_smoothing)
        metrics = {"accuracy": jnp.mean(jnp.argmax(student_outputs.logits, -1) == batch["label"])}
        parts = []
        for term in chosen:
            value, logged = term.loss(view)
            parts.append(getattr(options, term.WEIGHT) * value)
            metrics |= logged
        loss, *others = parts
        for part in others:
            loss += part
        return loss, metrics

    return loss_fn


def shared(teacher: Any, options: Distillation | None) -> Shared:
    """What a micro-batch takes from all of a step, so that the mean of their losses is the loss of the whole batch.

    Args:
        teacher: as in `distillation`; None for `supervised`.
        options: likewise; None for `supervised`.

    Returns:
        `(frozen, batches) -> entries`, micro-batches along the first axis of `batches`; see `training.terms`.
    """
    used = [cross_entropy, *(active(options) if teacher is not None and options is not None else ())]
    makers = [term.shared(teacher, options) for term in dict.fromkeys(used) if hasattr(term, "shared")]

    def entries(frozen: Any, batches: Any) -> dict[str, jax.Array]:
        return {key: value for make in makers if make for key, value in make(frozen, batches).items()}

    return entries
