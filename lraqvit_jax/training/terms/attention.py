"""Distillation of the attention maps, each network on its own stream."""

import jax

from lraqvit_jax.options.training import Distillation
from lraqvit_jax.training.losses import attention_kl
from lraqvit_jax.training.terms import View

WEIGHT = "delta"
NEEDS = ("params", "outputs", "attention")


def loss(view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
    """KL(teacher || student) in nats, mean over blocks, heads and queries."""
    value = attention_kl(view.teacher.attention, view.student.attention)
    return value, {"attention_kl": value}


def describe(options: Distillation) -> str:
    del options
    return "attention KL"
