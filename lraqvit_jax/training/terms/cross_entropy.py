"""Cross-entropy with the labels, of plain and of mixed images; the first term of Eq. 10."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lraqvit_jax.options.training import Distillation
from lraqvit_jax.training.losses import cross_entropy, labelled, mixed_cross_entropy
from lraqvit_jax.training.terms import View

WEIGHT = "alpha"
NEEDS = ()


def loss(view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over the images that have a label."""
    value = of_batch(view.student.logits, view.batch, view.label_smoothing)
    return value, {"ce": value}


def describe(options: Distillation) -> str:
    del options
    return "CE"


def of_batch(logits: jax.Array, batch: Any, label_smoothing: float) -> jax.Array:
    """Of plain or mixed images; see `lraqvit_jax.data.mix`."""
    count = batch.get("count")
    if "share" in batch:
        return mixed_cross_entropy(logits, batch["label"], batch["other_label"], batch["share"], label_smoothing, count)
    return cross_entropy(logits, batch["label"], label_smoothing, count)


def shared(teacher: Any, options: Distillation | None) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """How many labels a micro-batch has on average; see `losses.cross_entropy`."""
    del teacher, options
    return lambda teacher_params, batches: {"count": jnp.mean(labelled(batches))}
