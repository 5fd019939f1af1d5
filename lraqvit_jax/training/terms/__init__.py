"""Terms of the distillation loss, one a file.

A term is a module with

* `WEIGHT`, the field of `options.training.Distillation` that weighs it; 0 leaves the term out;
* `NEEDS`, which of the teacher's "params", "outputs" and "attention" it looks at;
* `loss(view) -> (value, metrics)`, its value and what of it is logged;
* `describe(options) -> str`, what the notes of a result say of it;
* where the mean over micro-batches needs something of the whole batch, `shared(teacher, options)`, a function
  `(teacher's params, micro-batches) -> entries` that every micro-batch gets besides its own, or None.

Terms are added up in the order in which `Distillation` has their weights.
"""

import dataclasses
import functools
import importlib
import pkgutil
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from lraqvit_jax.options.training import Distillation


class Outputs(NamedTuple):
    """What a model says of a batch.

    Attributes:
        logits: (batch, classes).
        blocks: output of every encoder block, (batch, tokens, dim) each.
        attention: of every block before the softmax, (..., tokens, tokens) each; none unless a term asked for it.
    """

    logits: jax.Array
    blocks: Any
    attention: Any


@dataclasses.dataclass(frozen=True)
class View:
    """What a term may look at.

    Attributes:
        options: of the distillation.
        batch: image, label, and what `shared` gives.
        model: the student.
        params: of the student.
        student: its outputs.
        teacher_params: constant; None where no active term needs them.
        teacher: its outputs, constant; None where no active term needs them.
        label_smoothing: of the labels.
    """

    options: Distillation
    batch: Any
    model: nn.Module
    params: Any
    student: Outputs
    teacher_params: Any = None
    teacher: Any = None
    label_smoothing: float = 0.0


@functools.cache
def terms() -> tuple[Any, ...]:
    """All terms, in the order of their weights."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    order = [field.name for field in dataclasses.fields(Distillation)]
    return tuple(sorted(modules, key=lambda term: order.index(term.WEIGHT)))


def active(options: Distillation) -> list[Any]:
    """The terms whose weight is not 0."""
    return [term for term in terms() if getattr(options, term.WEIGHT)]


def needs(options: Distillation) -> set[str]:
    """What the active terms look at of the teacher: "params", "outputs", "attention"."""
    return {need for term in active(options) for need in term.NEEDS}


def describe(options: Distillation) -> str:
    """The loss in words, for the notes of a result: the terms in use, cross-entropy and block error in any case."""
    shown = [term for term in terms() if getattr(options, term.WEIGHT) or term.WEIGHT in ("alpha", "beta")]
    return " + ".join(f"{getattr(options, term.WEIGHT):g} {term.describe(options)}" for term in shown)
