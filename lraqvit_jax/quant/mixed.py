"""Bits of each layer's kernels under a budget in bytes, from what narrower kernels do to the logits.

For each layer and width, that layer alone is rounded, and the divergence of the logits on the calibration images is
measured; divergences of several layers are taken to add up. From 8 bits everywhere, the layer that gives the most
bytes for its divergence is narrowed, until the model fits.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.cost import layer_cost
from lraqvit_jax.plan.records import PACKED, LayerPlan, LinearInfo, Plan
from lraqvit_jax.quant import quantize

WIDEST = 8
Divergences = dict[str, dict[int, float]]


def divergences(
    measure: Callable[[Mapping[str, Any]], float], products: Mapping[str, quantize.Product], rounding: str
) -> Divergences:
    """What each layer costs at each width below 8 bits, in nats of the logits; 8 bits count as nothing.

    Args:
        measure: gives the divergence of the float model with the kernels at some paths replaced.
        products: of the float model.
        rounding: field of a `Quantizer`.
    """
    round_kernel = quantize.choice("rounding", rounding).round_kernel
    costs: Divergences = {}
    for path in console.progress(dict.fromkeys(key.rpartition(":")[0] for key in products), "widths", "layer"):
        pair = {part: products[key] for part in "xz" if (key := f"{path}:{part}") in products}
        costs[path] = {WIDEST: 0.0}
        for bits in sorted(PACKED, reverse=True):
            changes = {}
            for part, product in pair.items():
                kernel, rows = jnp.asarray(product.kernel), jnp.asarray(product.x).reshape(-1, product.x.shape[-1])
                layer = dataclasses.replace(product.layer, weight_bits=bits)
                array, _ = product._replace(layer=layer).rounded(kernel, rows, rows @ kernel, round_kernel)
                changes[f"{path}/{quantize.kernel_names(layer)[part]}"] = array.dequantize()
            costs[path][bits] = max(measure(changes), costs[path][min(costs[path])])
    return costs


def allocate(plan: Plan, layers: list[LinearInfo], divergence: Divergences, budget: float) -> dict[str, LayerPlan]:
    """The plan with the bits of its kernels lowered until all its linear layers fit.

    Args:
        plan: with the layers that may be narrowed quantized.
        layers: the model's linear layers.
        divergence: of each layer and width; see `divergences`.
        budget: bytes for the linear layers.

    Raises:
        UserError: they do not fit in the fewest bits.
    """
    infos = {info.path: info for info in layers}
    chosen = {
        path: dataclasses.replace(layer, weight_bits=WIDEST) if path in divergence else layer
        for path, layer in plan.items()
    }

    def size(path: str, bits: int) -> int:
        return layer_cost(infos[path], dataclasses.replace(chosen[path], weight_bits=bits)).bytes

    total = sum(layer_cost(info, chosen[info.path]).bytes for info in layers)
    while total > budget:
        steps = [
            ((cost - costs[bits]) / (size(path, bits) - size(path, narrower)), path, narrower)
            for path, costs in divergence.items()
            for narrower, cost in costs.items()
            if size(path, narrower) < size(path, bits := chosen[path].weight_bits)
        ]
        if not steps:
            least, fewest = (total - budget) / 1e6, min(min(costs) for costs in divergence.values())
            raise UserError(f"budget_mb is {least:.3f} MB less than the model takes at {fewest} bits; raise it.")
        _, path, bits = min(steps)
        total -= size(path, chosen[path].weight_bits) - size(path, bits)
        chosen[path] = dataclasses.replace(chosen[path], weight_bits=bits)
    return chosen
