"""Sizes of blocks for the method "products": closed forms, scaled by measurements where they decide."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lraqvit_jax.base.console import progress
from lraqvit_jax.calibration.changes import Changes
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank.block import Solved
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import blocks as plan_blocks
from lraqvit_jax.plan.blocks import PARTS, Problem, Scale, Sizes
from lraqvit_jax.plan.budget import too_small
from lraqvit_jax.plan.records import HEAD_PARTS, LayerPlan, sibling
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.rounding import gptq


def scales(solved: Mapping[str, Solved]) -> plan_blocks.Scales:
    """Nothing measured yet."""
    return {(path, part): Scale(plan_blocks.PRIOR) for path in solved for part in PARTS}


def widths(
    solved: Mapping[str, Solved],
    moments: Mapping[str, Moments],
    changes: Changes,
    bits: Sequence[int],
    rounding: str,
) -> dict[str, dict[int, float]]:
    """What rounding the kernels of each layer alone to so many bits does to the logits: mean square, by path of the
    layer (query, key and value each) and bits; nothing for the widest.

    Args:
        solved: the blocks.
        moments: of what the layers of the dense model read, by path.
        changes: measures.
        bits: none, or some.
        rounding: a module of `quant.rounding`; errors are made good by the moments where it does so on its inputs.
    """
    losses: dict[str, dict[int, float]] = {}
    nearest = rounding == "nearest"
    for path in progress(solved if bits else (), "widths", "block"):
        layers, reads = solved[path].narrowed(plan_blocks.full(solved[path].block))
        for name, layer in layers.items():
            dense = sibling(name, "qkv") if name.rpartition("/")[2] in HEAD_PARTS else name
            # A projection reads values in the coordinates of the new kernels, of which no moments are known.
            read = None if nearest or name == "attn/proj" else reads.get(name, moments[f"{path}/{dense}"])
            of_layer = losses[f"{path}/{name}"] = {max(bits): 0.0}
            for width in sorted(set(bits) - {max(bits)}, reverse=True):
                rounded = {**layer, "kernel": _rounded(layer["kernel"], read, width)}
                lost = changes(path, solved[path].padded({**layers, name: rounded}))
                of_layer[width] = max(lost, of_layer[min(of_layer)])
    return losses


def _rounded(kernel: Float[np.ndarray, "m n"], read: Moments | None, bits: int) -> Float[np.ndarray, "m n"]:
    """What integers of so many bits hold of a kernel, by GPTQ where it is known what it reads."""
    layer = LayerPlan("quantized", bits=8, weight_bits=bits)
    if read is None:
        return np.asarray(qarray.quantize_kernel(jnp.asarray(kernel, jnp.float32), bits).dequantize(), np.float64)
    hessian = gptq.damped(read.second)
    scale = gptq.search_scale(kernel, np.diag(hessian), layer)
    return np.asarray(gptq.solve(kernel, hessian, scale, layer).dequantize(), np.float64)


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
