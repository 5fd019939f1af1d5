"""Distillation of the logits: `T² KL(teacher || student)`, Hinton et al. 2015."""

import jax

from lraqvit_jax.options.training import Distillation
from lraqvit_jax.training.losses import logits_kl
from lraqvit_jax.training.terms import View

WEIGHT = "gamma"
NEEDS = ("params", "outputs")


def loss(view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
    """In nats, at `temperature`."""
    value = logits_kl(view.teacher.logits, view.student.logits, view.options.temperature)
    return value, {"kl": value}


def describe(options: Distillation) -> str:
    return f"KL at T={options.temperature:g}"
