"""Multiple-choice knapsacks, solved by SciPy: of each group one choice, the least loss within a budget."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse


class Group(NamedTuple):
    """The choices of one layer: what each costs, and what each loses."""

    cost: np.ndarray
    loss: np.ndarray


def least(groups: list[Group], budget: float) -> float | None:
    """The least loss of all ways to choose, by integer programming; None where no way fits the budget."""
    cost, loss, one_of_each = _matrices(groups)
    limits = [optimize.LinearConstraint(one_of_each, 1, 1), optimize.LinearConstraint(cost[None], -np.inf, budget)]
    # The solver stops within 1e-6 of the optimum: of losses as small as there are, not of the largest.
    unit = min(loss[loss > 0], default=1.0)
    options = {"mip_rel_gap": 0}
    made = optimize.milp(
        loss / unit, integrality=np.ones(len(cost)), constraints=limits, bounds=(0, 1), options=options
    )
    return None if made.x is None else float(loss @ np.rint(made.x))


def relaxed(groups: list[Group], budget: float) -> tuple[float, float]:
    """Where a choice may be taken in part: the least loss, and the loss per cost of the part that just fits."""
    cost, loss, one_of_each = _matrices(groups)
    unit = max(loss.max(), 1e-300)
    made = optimize.linprog(loss / unit, cost[None], [budget], one_of_each, np.ones(len(groups)), method="highs")
    return float(made.fun) * unit, float(made.ineqlin.marginals[0]) * unit


def split_step(groups: list[Group], slope: float) -> float:
    """The most that a step between neighbours on a lower convex hull saves, of the steps with this loss per cost."""
    steps = [
        (before - after, (after - before) / (dearer - cheaper))
        for group in groups
        for (cheaper, before), (dearer, after) in itertools.pairwise(_hull(group))
    ]
    return max((saved for saved, of_step in steps if np.isclose(of_step, slope, rtol=1e-6, atol=0)), default=0.0)


def _hull(group: Group) -> list[tuple[float, float]]:
    """The choices that no mixture of two others beats, found by trying all pairs of others."""
    points = sorted(set(zip(group.cost.tolist(), group.loss.tolist(), strict=True)))
    undominated = [(c, x) for c, x in points if not any(d <= c and y <= x and (d, y) != (c, x) for d, y in points)]

    def beaten(c: float, x: float) -> bool:
        pairs = itertools.product(undominated, undominated)
        return any(d < c < e and x >= (y * (e - c) + z * (c - d)) / (e - d) for (d, y), (e, z) in pairs)

    return [point for point in undominated if not beaten(*point)]


def _matrices(groups: list[Group]) -> tuple[np.ndarray, np.ndarray, sparse.csr_array]:
    rows = np.repeat(np.arange(len(groups)), [len(group.cost) for group in groups])
    ones = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))))
    return np.concatenate([group.cost for group in groups]), np.concatenate([group.loss for group in groups]), ones


def largest_minimum(groups: list[Group], budget: float) -> float | None:
    """The largest that the least gain of all groups can be, `loss` read as a gain; None where no way fits."""
    cost, gain, one_of_each = _matrices(groups)
    each = sparse.hstack([one_of_each, np.zeros((len(groups), 1))])
    above = sparse.hstack([one_of_each * gain, -np.ones((len(groups), 1))])
    limits = [
        optimize.LinearConstraint(each, 1, 1),
        optimize.LinearConstraint(np.append(cost, 0)[None], -np.inf, budget),
        optimize.LinearConstraint(above, 0, np.inf),
    ]
    objective, integrality = np.append(np.zeros(len(cost)), -1), np.append(np.ones(len(cost)), 0)
    options = {"mip_rel_gap": 0}
    made = optimize.milp(objective, integrality=integrality, constraints=limits, bounds=(0, 1), options=options)
    return None if made.x is None else -float(made.fun)
