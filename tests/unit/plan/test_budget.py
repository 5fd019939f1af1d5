"""Ranks under a budget, against integer and linear programs that SciPy solves."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan import budget
from lraqvit_jax.plan.cost import macs, parameters
from lraqvit_jax.plan.records import LinearInfo
from tests.unit.plan import knapsack

property_test = settings(max_examples=60, deadline=None, derandomize=True)
LAYERS = [
    LinearInfo("a", 16, 48, 17, "attention"),
    LinearInfo("b", 24, 24, 17, "attention"),
    LinearInfo("c", 16, 64, 17, "mlp"),
]
ROUNDING = 1e-6
"""Share of the largest loss by which the solver's answers may be off: its own tolerances are 1e-7."""


class Problem(NamedTuple):
    """Layers, what they lose at every rank, what they cost at it, and what ranks are multiples of."""

    layers: list[LinearInfo]
    curves: dict[str, np.ndarray]
    cost: object
    multiple: int

    def choices(self, layer):
        """What a layer may be, {rank: (cost, loss)}; 0 is dense, which loses nothing."""
        m, n = layer.features_in, layer.features_out
        ranks, saved = range(self.multiple, min(m, n) + 1, self.multiple), int(layer.pivoted)
        paying = [rank for rank in ranks if rank * (m + n) - saved * rank**2 < m * n]
        losses = {rank: float(self.curves[layer.path][rank]) for rank in paying}
        return {rank: (self.cost(layer, rank), loss) for rank, loss in ({0: 0.0} | losses).items()}

    def groups(self):
        tables = [np.array(list(self.choices(layer).values()), float).T for layer in self.layers]
        return [knapsack.Group(cost, loss) for cost, loss in tables]

    def dense(self):
        return sum(self.cost(layer, 0) for layer in self.layers)

    def sums(self, chosen):
        """Cost and loss of ranks."""
        assert set(chosen) == {layer.path for layer in self.layers}
        return tuple(map(sum, zip(*(self.choices(layer)[chosen[layer.path]] for layer in self.layers), strict=True)))

    def tolerance(self):
        return ROUNDING * max(group.loss.max() for group in self.groups())


@st.composite
def problems(draw, costs=("parameters", "macs", "measured"), units=(1.0, 0.1)):
    """Whole numbers, so that ties are many and sums are exact; in tenths, ties are broken by rounding alone."""
    shapes = draw(st.lists(st.tuples(*[st.integers(3, 20)] * 2, st.integers(1, 9)), min_size=1, max_size=5))
    layers = [
        LinearInfo(f"layer_{index}", *shape, "mlp", pivoted=draw(st.booleans())) for index, shape in enumerate(shapes)
    ]
    curves, times, unit = {}, {}, draw(st.sampled_from(units))
    for layer in layers:
        k = min(layer.features_in, layer.features_out)
        values = draw(
            st.sampled_from([st.integers(0, 60), st.integers(0, 10**6), st.just(1), st.sampled_from([1, 2, 7])])
        )
        drops = draw(st.lists(values, min_size=k, max_size=k))
        drops = sorted(drops, reverse=True) if draw(st.booleans()) else drops
        curves[layer.path] = np.append(np.cumsum(unit * np.array(drops[::-1], float))[::-1], 0.0)
        times[layer.path] = draw(st.lists(st.integers(1, 400), min_size=k + 1, max_size=k + 1))
    named = {"parameters": parameters, "macs": macs, "measured": lambda layer, rank: times[layer.path][rank]}
    return Problem(layers, curves, named[draw(st.sampled_from(costs))], draw(st.sampled_from([1, 1, 2, 3])))


shares = st.floats(0.02, 0.99)


def run(method, problem, share):
    return method(problem.layers, problem.curves, share, problem.multiple, problem.cost)


@property_test
@given(problems(), shares)
def test_the_least_loss_is_that_of_an_integer_program_up_to_one_step(problem, share):
    """Never above the budget; and no further from the best than the step that did not fit.

    Bound: let P be the loss once all steps along the hulls are taken that come before the first that does not fit, D
    what that one, the split step, saves. The linear relaxation takes the same steps and a part t < 1 of the split step
    (Sinha and Zoltners 1979): its optimum is P - t D. What `least_loss` does after P only lowers the loss. So

        relaxation <= integer optimum <= least_loss <= P = relaxation + t D <= relaxation + D.

    The split step has the slope of the relaxation's multiplier; of several with that slope, D is the largest. Where
    the relaxation splits none, D = 0: the hulls' points suffice, and the answer is the integer program's.
    """
    groups, limit = problem.groups(), share * problem.dense()
    best = knapsack.least(groups, np.floor(limit))
    if best is None:
        with pytest.raises(UserError, match=r"plan\.budget"):
            run(budget.least_loss, problem, share)
        return
    cost, loss = problem.sums(run(budget.least_loss, problem, share))
    assert cost <= limit
    optimum, slope = knapsack.relaxed(groups, np.floor(limit))
    assert optimum <= best + problem.tolerance()
    assert best <= loss + problem.tolerance()
    assert loss <= optimum + knapsack.split_step(groups, slope) + problem.tolerance()


def test_a_curve_of_straight_lines_stays_within_the_budget():
    """Its steps are worth the same but for the last bit, which must not put a later step before an earlier one."""
    layer, drops = LinearInfo("a", 31, 40, 1, "mlp"), np.repeat([0.7, 0.2, 0.1], [14, 3, 14])
    curve = np.append(np.cumsum(drops[::-1])[::-1], 0)
    rank = budget.least_loss([layer], {"a": curve}, 0.54)["a"]
    assert rank == int(0.54 * 31 * 40) // (31 + 40)


@property_test
@given(problems(units=(1.0,)), st.integers(0, 400), st.integers(1, 100))
def test_the_least_loss_is_exact_where_a_point_of_the_hulls_spends_the_whole_budget(problem, numerator, denominator):
    """Everett 1963: choices that each have the least of loss + price * cost have the least loss of all that spend as
    much. The prices try every point of the hulls without any hull."""
    price = numerator / denominator
    picked = [
        min(map(tuple, np.stack(group, 1)), key=lambda it: (it[1] + price * it[0], it[0])) for group in problem.groups()
    ]
    spent, best = map(sum, zip(*picked, strict=True))
    assume(spent + 0.5 < problem.dense())
    cost, loss = problem.sums(run(budget.least_loss, problem, (spent + 0.5) / problem.dense()))
    assert cost <= spent
    assert loss == best
    assert abs(knapsack.least(problem.groups(), spent) - best) <= problem.tolerance()


@property_test
@given(problems(), shares)
def test_nothing_that_is_left_over_would_still_buy_a_smaller_loss(problem, share):
    try:
        chosen = run(budget.least_loss, problem, share)
    except UserError:
        assume(False)
    left = share * problem.dense() - problem.sums(chosen)[0]
    for layer in problem.layers:
        (cost, loss), others = problem.choices(layer)[chosen[layer.path]], problem.choices(layer).values()
        assert not any(cost < dearer <= cost + left and less < loss for dearer, less in others)


@property_test
@given(problems(costs=("parameters", "macs")), shares)
def test_energy_keeps_the_largest_common_share_that_an_integer_program_finds(problem, share):
    """The program: of each layer one choice, within the budget; maximize the least share kept."""
    kept, groups = {}, []
    for layer in problem.layers:
        choices, whole = problem.choices(layer), problem.curves[layer.path][0] or 1
        kept[layer.path] = {rank: 1 - loss / whole for rank, (_, loss) in choices.items()}
        costs = [cost for cost, _ in choices.values()]
        groups.append(knapsack.Group(np.array(costs), np.array([*kept[layer.path].values()])))
    best = knapsack.largest_minimum(groups, np.floor(share * problem.dense()))
    if best is None:
        with pytest.raises(UserError, match=r"plan\.budget"):
            run(budget.energy, problem, share)
        return
    chosen = run(budget.energy, problem, share)
    assert problem.sums(chosen)[0] <= share * problem.dense()
    assert min(kept[path][rank] for path, rank in chosen.items()) == pytest.approx(best, abs=ROUNDING)


def test_another_cost_changes_what_is_worth_keeping():
    wide = [LinearInfo("a", 32, 32, 100, "mlp"), LinearInfo("b", 32, 32, 1, "mlp")]
    curve = np.append(np.cumsum(np.linspace(1, 2, 32))[::-1], 0)
    curves = {"a": curve, "b": curve}
    by_parameters = budget.least_loss(wide, curves, 0.6, 1)
    by_macs = budget.least_loss(wide, curves, 0.6, 1, macs)
    assert by_parameters["a"] == 0 or by_parameters["b"] == 0 or by_parameters["a"] == by_parameters["b"]
    assert by_macs["b"] == 0 and 0 < by_macs["a"] < 16


@pytest.mark.parametrize("method", [budget.least_loss, budget.energy])
@pytest.mark.parametrize("share", [0.0, 1.0, 0.05])
def test_a_budget_that_cannot_be_met_is_refused(method, share):
    curves = {layer.path: np.arange(min(layer.features_in, layer.features_out), -1.0, -1.0) for layer in LAYERS}
    with pytest.raises(UserError, match=r"plan\.budget"):
        method(LAYERS, curves, share, 4)
