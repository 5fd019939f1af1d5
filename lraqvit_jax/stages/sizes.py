"""Sizes of blocks for the method "products": closed forms, scaled by measurements where they decide."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lraqvit_jax.base import trees
from lraqvit_jax.base.console import progress
from lraqvit_jax.calibration.changes import Changes
from lraqvit_jax.lowrank.block import Solved
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import blocks as plan_blocks
from lraqvit_jax.plan.blocks import PARTS, Problem, Scale, Sizes
from lraqvit_jax.plan.budget import too_small
from lraqvit_jax.plan.records import sibling
from lraqvit_jax.quant import qarray


def scales(solved: Mapping[str, Solved]) -> plan_blocks.Scales:
    """Nothing measured yet."""
    return {(path, part): Scale(plan_blocks.PRIOR) for path in solved for part in PARTS}


def widths(
    solved: Mapping[str, Solved], params: Any, changes: Changes, bits: Sequence[int]
) -> dict[str, dict[int, float]]:
    """What rounding the kernels of each layer alone to so many bits does to the logits: mean square, by path of the
    layer (query, key and value each) and bits; nothing for the widest.

    Args:
        solved: the blocks.
        params: of the dense model, on the host.
        changes: measures.
        bits: none, or some.
    """
    losses: dict[str, dict[int, float]] = {}
    for path in progress(solved if bits else (), "widths", "block"):
        for whole, name, columns in _layers(solved[path]):
            layer = trees.get(params, whole)
            of_layer = losses[sibling(whole, name)] = {max(bits): 0.0}
            for width in sorted(set(bits) - {max(bits)}, reverse=True):
                kernel = np.array(layer["kernel"])
                kernel[:, columns] = qarray.quantize_kernel(jnp.asarray(kernel[:, columns]), width).dequantize()
                lost = changes(path, {whole.removeprefix(f"{path}/"): {**layer, "kernel": kernel}})
                of_layer[width] = max(lost, of_layer[min(of_layer)])
    return losses


def _layers(solved: Solved) -> list[tuple[str, str, slice]]:
    """Of each layer of a block: the path of the dense one that has it, its name, and its columns there."""
    layers = [(info.path, info.path.rpartition("/")[2], slice(None)) for info in solved.block.mlp]
    if solved.block.attention:
        qkv, proj = solved.block.attention
        third = qkv.features_out // 3
        names = enumerate(("query", "key", "value"))
        layers += [(qkv.path, name, slice(index * third, (index + 1) * third)) for index, name in names]
        layers.append((proj.path, "proj", slice(None)))
    return layers


def choose(
    solved: Mapping[str, Solved],
    problem: Problem,
    changes: Changes,
    scales: plan_blocks.Scales,
    options: PlanOptions,
) -> dict[str, Sizes]:
    """The sizes of every block: as predicted, then measured there and chosen anew, `options.rounds` times.

    Args:
        solved: the blocks.
        problem: what there is to choose.
        changes: measures.
        scales: what was measured so far; gains what is measured.
        options: budget and rounds.

    Raises:
        UserError: the budget is too small.
    """

    def predicted(path: str, part: str, sizes: Sizes) -> float:
        whole = plan_blocks.full(solved[path].block)
        return solved[path].curves.loss(part, whole._replace(**{part: getattr(sizes, part)}))

    def measure(path: str, part: str, sizes: Sizes) -> float:
        return changes(path, solved[path].alone(part, getattr(sizes, part)))

    return dict(
        plan_blocks.settle(lambda: _solve(problem, scales, options), predicted, measure, scales, options.rounds)
    )


def _solve(problem: Problem, scales: plan_blocks.Scales, options: PlanOptions) -> dict[str, Sizes]:
    try:
        return problem.solve(scales)
    except ValueError as error:
        raise too_small(options.budget, options.multiple) from error
