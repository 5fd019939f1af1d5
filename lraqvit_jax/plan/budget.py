"""Ranks under a budget, from what every layer loses and costs at every rank.

Which choice for each layer loses least, all together within the budget, is a multiple-choice knapsack (Sinha and
Zoltners 1979). Its linear relaxation is solved by walking down the lower convex hulls of the layers' choices.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.cost import RankCost, parameters
from lraqvit_jax.plan.ranks import check_budget
from lraqvit_jax.plan.records import LinearInfo

Curve = Float[np.ndarray, " k+1"]
"""What a layer loses at every rank from 0 to full, descending to 0."""


def loss_curve(worth: Float[np.ndarray, " k"]) -> Curve:
    """What is lost with 0, 1, ... k channels left, of what each is worth, in the order in which they are kept."""
    return np.append(np.cumsum(worth[::-1])[::-1], 0.0)


class Choice(NamedTuple):
    """What a layer, or a part of a block, can be: its cost, its loss, and its size; of a layer the rank, 0 where it
    stays dense."""

    cost: float
    loss: float
    size: Any


def least_loss(
    layers: Iterable[LinearInfo],
    curves: Mapping[str, Curve],
    budget: float,
    multiple: int = 1,
    cost: RankCost = parameters,
) -> dict[str, int]:
    """The ranks with the least sum of losses whose costs stay within the share `budget` of the dense layers' cost.

    Each layer's choices (every multiple, or dense, which loses nothing) are thinned to their lower convex hull, and
    the steps along all hulls taken in the order of loss saved per cost. Up to the first that does not fit, that is the
    best of all; what is lost beyond is at most what that one step saves. What the budget then leaves over goes to
    later steps that fit, and to the choices between, again by loss saved per cost.

    Args:
        layers: those to factorize.
        curves: loss by rank, by path.
        budget: share, in (0, 1).
        multiple: of which every rank is one.
        cost: of a layer at a rank.

    Raises:
        UserError: the budget is not a share, or the smallest ranks are too large for it.
    """
    check_budget(budget, multiple)
    layers = list(layers)
    choices = {layer.path: _choices(layer, curves[layer.path], multiple, cost) for layer in layers}
    try:
        chosen = cheapest(choices, budget * sum(cost(layer, 0) for layer in layers))
    except ValueError as error:
        raise too_small(budget, multiple) from error
    return {path: choice.size for path, choice in chosen.items()}


def cheapest(choices: Mapping[str, list[Choice]], limit: float) -> dict[str, Choice]:
    """The choices with the least sum of losses whose costs stay within the limit, as `least_loss` finds them.

    Args:
        choices: of each layer or part, by rising cost.
        limit: of the sum of costs.

    Raises:
        ValueError: the cheapest choices are beyond the limit.
    """
    hulls = {name: _hull(of_one) for name, of_one in choices.items()}
    left = limit - sum(hull[0].cost for hull in hulls.values())
    if left < 0:
        raise ValueError("the cheapest choices are beyond the limit")
    chosen, left = _walk(hulls, left)
    return _fill(chosen, choices, left)


class TooSmallError(UserError):
    """A budget that nothing is small enough for."""


def too_small(budget: float, multiple: int) -> TooSmallError:
    """The error of such a budget."""
    return TooSmallError(
        f"plan.budget {budget} is below what sizes of {multiple} cost; raise it or lower plan.multiple."
    )


def _choices(layer: LinearInfo, curve: Curve, multiple: int, cost: RankCost) -> list[Choice]:
    """What a layer can be, by rising cost, dense last; nothing that costs more than dense."""
    dense = Choice(cost(layer, 0), 0.0, 0)
    ranks = range(multiple, min(len(curve), int(layer.break_even) + 1), multiple)
    pairs = [Choice(cost(layer, rank), float(curve[rank]), rank) for rank in ranks if rank < layer.break_even]
    return [*sorted(pair for pair in pairs if pair.cost < dense.cost), dense]


def _hull(choices: list[Choice]) -> list[Choice]:
    """The choices without those that two others beat together.

    Slopes from neighbour to neighbour rise, in floating point too: sorted by slope, the steps of a layer keep their
    order.
    """
    hull: list[Choice] = []
    for choice in choices:
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    """Loss per cost of a step; negative where the step saves."""
    return (after.loss - before.loss) / (after.cost - before.cost)


def _walk(hulls: Mapping[str, list[Choice]], left: float) -> tuple[dict[str, Choice], float]:
    """Takes the steps along all hulls that fit, best first; a layer stays where its first step too many would begin.

    Returns:
        The choice of each layer, and what is left of the budget.
    """
    steps = [(before, after, path) for path, hull in hulls.items() for before, after in itertools.pairwise(hull)]
    steps.sort(key=lambda step: _slope(step[0], step[1]))
    chosen, stopped = {path: hull[0] for path, hull in hulls.items()}, set()
    for before, after, path in steps:
        if path in stopped or after.cost - before.cost > left:
            stopped.add(path)
            continue
        left -= after.cost - before.cost
        chosen[path] = after
    return chosen, left


def _fill(chosen: Mapping[str, Choice], choices: Mapping[str, list[Choice]], left: float) -> dict[str, Choice]:
    """Spends what is left on any choices that lose less, on the hull or not, best first."""
    filled = dict(chosen)
    while steps := [
        (_slope(filled[path], choice), path, choice)
        for path, of_layer in choices.items()
        for choice in of_layer
        if 0 < choice.cost - filled[path].cost <= left and choice.loss < filled[path].loss
    ]:
        _, path, choice = min(steps)
        left -= choice.cost - filled[path].cost
        filled[path] = choice
    return filled


def energy(
    layers: Iterable[LinearInfo],
    curves: Mapping[str, Curve],
    budget: float,
    multiple: int = 1,
    cost: RankCost = parameters,
) -> dict[str, int]:
    """The smallest rank of every layer that keeps one common share of its energy, the largest that the budget allows.

    Takes what `least_loss` takes. Where that rank does not pay, the layer stays dense.
    """
    check_budget(budget, multiple)
    layers = list(layers)

    def rank(layer: LinearInfo, share: float) -> int:
        curve = curves[layer.path]
        enough = int(np.argmax(curve <= (1 - share) * curve[0]))
        rounded = max(multiple, -(-enough // multiple) * multiple)
        return rounded if rounded < layer.break_even else 0

    def fits(share: float) -> bool:
        return sum(cost(layer, rank(layer, share)) for layer in layers) <= limit

    limit, low, high = budget * sum(cost(layer, 0) for layer in layers), 0.0, 1.0
    if not fits(low):
        raise too_small(budget, multiple)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {layer.path: rank(layer, low) for layer in layers}
