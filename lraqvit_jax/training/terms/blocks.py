"""Block-level distillation, Eq. 9: the mean over blocks of the squared error of their outputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lraqvit_jax.options.training import Distillation
from lraqvit_jax.training.losses import block_mse, mean_squares
from lraqvit_jax.training.outputs import outputs
from lraqvit_jax.training.terms import View

WEIGHT = "beta"
NEEDS = ("params", "outputs")


def loss(view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each network on its own stream, or the student's blocks on the teacher's inputs (`teacher_forced`).

    Errors are relative where `normalized` is set, and of the last block alone where `last_block` is (GFM, Yu and Wu
    2023).
    """
    options, targets, blocks = view.options, view.teacher.blocks, view.student.blocks
    if options.teacher_forced:
        blocks = view.model.apply({"params": view.params}, view.batch["image"], targets, method="forced")
    if options.last_block:
        targets, blocks = targets[-1:], blocks[-1:]
    errors = block_mse(targets, blocks, options.normalized, view.batch.get("squares"))
    value = jnp.mean(errors)
    return value, {"kd": value} | {f"kd_{index}": error for index, error in enumerate(errors)}


def describe(options: Distillation) -> str:
    return (
        f"{'relative ' if options.normalized else ''}block MSE{' (teacher-forced)' if options.teacher_forced else ''}"
        f"{' of the last block' if options.last_block else ''}"
    )


def shared(teacher: Any, options: Distillation) -> Callable[[Any, Any], dict[str, jax.Array]] | None:
    """Mean squares of the teacher's outputs over the whole batch, by a second pass; relative errors need them."""
    if not options.normalized:
        return None

    def entries(teacher_params: Any, batches: Any) -> dict[str, jax.Array]:
        def squares(images: jax.Array) -> jax.Array:
            blocks = outputs(teacher, teacher_params, images).blocks
            return mean_squares(blocks[-1:] if options.last_block else blocks)

        return {"squares": jnp.mean(jax.lax.map(squares, batches["image"]), 0)}

    return entries
