"""PELA's penalty (Guo et al. 2024): how far the product of a pair is from the teacher's kernel at its worst entry."""

import jax

from lraqvit_jax.options.training import Distillation
from lraqvit_jax.training.losses import perturbation
from lraqvit_jax.training.terms import View

WEIGHT = "bound"
NEEDS = ("params",)


def loss(view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over pairs of `(max |u v - W|)²`."""
    value = perturbation(view.params, view.teacher_params)
    return value, {"perturbation": value}


def describe(options: Distillation) -> str:
    del options
    return "perturbation"
