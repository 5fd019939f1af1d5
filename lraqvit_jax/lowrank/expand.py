"""The dense model that a float one stands for: pairs multiplied out, and zeros for what is gone."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import trees
from lraqvit_jax.lowrank.block import padded
from lraqvit_jax.lowrank.pairs import Layer
from lraqvit_jax.plan.basis import dense_kernel
from lraqvit_jax.plan.blocks import narrowed
from lraqvit_jax.plan.records import LinearInfo, Plan, resolved


def dense_params(params: Any, plan: Plan, layers: Iterable[LinearInfo]) -> dict[str, Any]:
    """The parameters of the dense model that computes the same, float32.

    Args:
        params: of a float model, on the host.
        plan: of that model.
        layers: of the dense model.
    """
    layers = list(layers)
    made = {info.path: _multiplied_out(params, plan, info) for info in resolved(layers, plan)}
    for block in narrowed(layers, plan):
        infos, start = (*block.attention, *block.mlp), f"{block.path}/"
        shapes = {info.path.removeprefix(start): (info.features_in, info.features_out) for info in infos}
        small = {info.path.removeprefix(start): made.pop(info.path) for info in resolved(infos, plan)}
        whole = padded(small, shapes, infos[0].heads or 1)
        made |= {start + path: layer for path, layer in whole.items()}
    kernels = {path: np.asarray(value, np.float32) for path, value in trees.flatten(made).items()}
    return trees.nest(trees.flatten(trees.without(params, plan)) | kernels)


def _multiplied_out(params: Mapping[str, Any], plan: Plan, info: LinearInfo) -> Layer:
    """The kernel of a layer and, where it has one, its bias; float64, for products."""
    layer = trees.get(params, info.path)
    exact = {name: np.asarray(value, np.int64 if name == "basis" else np.float64) for name, value in layer.items()}
    bias = {"bias": exact["bias"]} if "bias" in exact else {}
    return {"kernel": dense_kernel(exact, plan[info.path].basis, info.features_in), **bias}
