"""What a model says of images: logits, the outputs of its blocks and, where they are asked for, its attention maps."""

from typing import Any

import jax

from lraqvit_jax.training.terms import Outputs


def outputs(model: Any, params: Any, images: jax.Array, attention: bool = False) -> Outputs:
    """Runs the model once.

    Args:
        model: with `return_features`.
        params: of it.
        images: (batch, size, size, 3), normalized.
        attention: whether to collect the maps before their softmax.
    """
    mutable = ["attention"] if attention else False
    answer = model.apply({"params": params}, images, return_features=True, mutable=mutable)
    (logits, blocks), maps = answer if attention else (answer, {})
    return Outputs(logits, blocks, jax.tree.leaves(maps))
