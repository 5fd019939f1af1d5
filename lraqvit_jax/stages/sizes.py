"""Sizes of blocks for the method "products": closed forms, scaled by measurements where they decide."""

from collections.abc import Mapping

from lraqvit_jax.calibration.changes import Changes
from lraqvit_jax.lowrank.block import Solved
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import blocks as plan_blocks
from lraqvit_jax.plan.blocks import PARTS, Problem, Scale, Sizes
from lraqvit_jax.plan.budget import too_small


def scales(solved: Mapping[str, Solved]) -> plan_blocks.Scales:
    """Nothing measured yet."""
    return {(path, part): Scale(plan_blocks.PRIOR) for path in solved for part in PARTS}


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
