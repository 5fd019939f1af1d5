"""Where a number that is not finite comes from: the first layer that puts one out, or else the first gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lraqvit_jax.base import trees


def source(model: nn.Module, loss_fn: Callable[..., Any], params: Any, frozen: Any, batch: Any) -> str:
    """Names it, for a batch that gave a loss or a gradient which is not finite.

    Args:
        model: that is trained.
        loss_fn: `(params, frozen, batch) -> (loss, metrics)`.
        params: before the step.
        frozen: of the teacher.
        batch: on the mesh.

    Returns:
        Such as "the output of blocks_3/mlp/fc1"; of gradients, the last layer's, since they come from the end.
    """
    outputs = _outputs(model, params, batch["image"])
    layers = list(outputs)
    for path, finite in outputs.items():
        if not finite:
            return f"the output of {path}"
    gradients = jax.jit(jax.grad(loss_fn, has_aux=True))(params, frozen, batch)[0]
    bad = [path for path, leaf in trees.flatten(gradients).items() if not bool(jnp.all(jnp.isfinite(leaf)))]
    if bad:
        return f"the gradient of {max(bad, key=lambda path: _place(layers, path))}"
    return "the sum of the gradients' squares"


def _outputs(model: nn.Module, params: Any, images: Any) -> dict[str, bool]:
    """Whether the output of every module is finite, in the order in which they are done."""
    paths: list[str] = []

    def run(params: Any, images: Any) -> list[jax.Array]:
        flags_in_order: list[jax.Array] = []
        paths.clear()

        def watch(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            y = call(*args, **kwargs)
            if context.method_name == "__call__" and isinstance(y, jax.Array):
                paths.append("/".join(context.module.path) or "the model")
                flags_in_order.append(jnp.all(jnp.isfinite(y)))
            return y

        with nn.intercept_methods(watch):
            model.apply({"params": params}, images)
        return flags_in_order

    flags = jax.device_get(jax.jit(run)(params, images))
    return dict(zip(paths, map(bool, flags), strict=True))


def _place(layers: list[str], path: str) -> int:
    """How late in the model a parameter is used."""
    return max((index for index, layer in enumerate(layers) if path.startswith(f"{layer}/")), default=-1)
