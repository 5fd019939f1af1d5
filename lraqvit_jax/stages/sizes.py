"""Sizes of blocks for the method "products": closed forms, scaled by measurements where they decide."""

from collections.abc import Mapping

import numpy as np

from lraqvit_jax.base import console
from lraqvit_jax.calibration.changes import Changes
from lraqvit_jax.lowrank.block import Solved
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import blocks as plan_blocks
from lraqvit_jax.plan.blocks import PARTS, Problem, Scale, Sizes
from lraqvit_jax.plan.budget import too_small

PRIOR = 3.0
"""What a measured change is to its prediction where nothing was measured: errors of the tokens of an image add up."""


def scales(solved: Mapping[str, Solved]) -> plan_blocks.Scales:
    """Nothing measured yet."""
    return {(path, part): Scale(PRIOR) for path in solved for part in PARTS}


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
    chosen = _solve(problem, scales, options)
    for index in range(options.rounds):
        predicted = {
            (path, part): _predicted(solved[path], part, sizes) for path, sizes in chosen.items() for part in PARTS
        }
        unknown = [key for key, loss in predicted.items() if loss > 0 and loss not in scales[key].points]
        for path, part in console.progress(unknown, f"sizes, round {index + 1}", "part", len(unknown)):
            measured = changes(path, solved[path].alone(part, getattr(chosen[path], part)))
            scales[path, part].points[predicted[path, part]] = measured
        _share(scales)
        chosen, before = _solve(problem, scales, options), chosen
        if chosen == before:
            break
    return chosen


def _predicted(solved: Solved, part: str, sizes: Sizes) -> float:
    """What a part is predicted to lose at its size, all else whole."""
    whole = plan_blocks.full(solved.block)
    return solved.curves.loss(part, whole._replace(**{part: getattr(sizes, part)}))


def _share(scales: Mapping[tuple[str, str], Scale]) -> None:
    """Where a part of a block was not measured, the median of what others say of that part is taken."""
    for part in PARTS:
        factors = [y / x for (_, name), scale in scales.items() if name == part for x, y in scale.points.items()]
        for (_, name), scale in scales.items():
            if name == part and factors:
                scale.prior = float(np.median(factors))


def _solve(problem: Problem, scales: plan_blocks.Scales, options: PlanOptions) -> dict[str, Sizes]:
    try:
        return problem.solve(scales)
    except ValueError as error:
        raise too_small(options.budget, options.multiple) from error
