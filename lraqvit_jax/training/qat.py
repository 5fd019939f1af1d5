"""Fine-tuning of a quantized model: clipping ranges, and with them kernels, learned through straight-through rounding.

The same model with `arithmetic="train"` holds each kernel in float, as `latent`, and rounds it at every step. Scales
and clipping shares get LSQ's gradient (Esser et al. 2020, Eq. 2-3). LSQ divides that by `sqrt(n qmax)`, so that a scale
moves by a share of itself like its weights do; under Adam, which no factor of a gradient changes, the update is what
is scaled: a scale moves by `rate * |scale|`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from lraqvit_jax.base import trees
from lraqvit_jax.plan.cost import kernel_shapes
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, Plan
from lraqvit_jax.quant import qarray

KERNELS = ("kernel", "u", "v")
GRIDS = ("x_scale", "z_scale", "x_clip", "z_clip")
SMALLEST = 1e-3
"""Of a learned clipping share."""


def learned_scale(path: str) -> bool:
    """Whether the parameter at this path, "a/b/c", is a scale or a clipping share of a quantized layer."""
    *_, parent, name = ("", *path.split("/"))
    return name in GRIDS or (name == "scale" and parent in KERNELS)


def start(params: Any, plan: Plan, layers: Iterable[LinearInfo]) -> Any:
    """Parameters for training, which compute what the quantized ones do.

    Args:
        params: of the quantized model.
        plan: its plan.
        layers: those that the plan has (`records.resolved`).
    """
    changes = {}
    for info in layers:
        path, layer = info.path, plan[info.path]
        if layer.form == "quantized":
            weights = dict(trees.get(params, path))
            for name, (rows, _) in kernel_shapes(info, layer).items():
                kernel = qarray.of(weights[name], layer.kernel_bits, layer.group, rows)
                weights[name] = {"latent": kernel.dequantize(), "scale": kernel.scale}
            if layer.granularity == "per_token_dynamic":
                parts = ("x", "z") if layer.rank else ("x",)
                weights |= {f"{part}_clip": jnp.float32(layer.clip_of(part)) for part in parts}
            changes[path] = weights
    return trees.replace(params, changes)


def finish(params: Any, plan: Plan) -> tuple[Any, dict[str, LayerPlan]]:
    """The quantized model again: parameters, and the plan with what was learned of dynamic scales."""
    changes, new_plan = {}, dict(plan)
    for path, layer in plan.items():
        if layer.form == "quantized":
            weights = dict(trees.get(params, path))
            for name in KERNELS:
                if name in weights:
                    latent, scale = (jnp.asarray(weights[name][key]) for key in ("latent", "scale"))
                    weights[name] = qarray.quantize_kernel(latent, layer.kernel_bits, layer.group, scale).stored()
            clips: dict[str, Any] = {
                field: float(jnp.clip(weights.pop(name), SMALLEST, 1))
                for field, name in (("clip", "x_clip"), ("clip_z", "z_clip"))
                if name in weights
            }
            new_plan[path] = dataclasses.replace(layer, **clips)
            changes[path] = weights
    return trees.replace(params, changes), new_plan
