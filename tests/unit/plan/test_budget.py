"""Ranks under a budget, against an exhaustive search."""

import itertools

import numpy as np
import pytest

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan import ranks
from lraqvit_jax.plan.records import LinearInfo

LAYERS = [
    LinearInfo("a", 16, 48, 17, "attention"),
    LinearInfo("b", 24, 24, 17, "attention"),
    LinearInfo("c", 16, 64, 17, "mlp"),
]
DENSE = sum(ranks.parameters(layer, 0) for layer in LAYERS)


def curves(rng, convex=True):
    found = {}
    for layer in LAYERS:
        drops = rng.exponential(1, min(layer.features_in, layer.features_out)) * np.exp(rng.normal(0, 1))
        drops = np.sort(drops)[::-1] if convex else drops
        found[layer.path] = np.append(np.cumsum(drops[::-1])[::-1], 0.0)
    return found


def loss(found, chosen):
    return sum(found[path][rank] if rank else 0 for path, rank in chosen.items())


def spent(chosen, cost=ranks.parameters):
    return sum(cost(layer, chosen[layer.path]) for layer in LAYERS)


def search(found, budget, multiple):
    """The least loss of all combinations within the budget."""
    choices = [[0, *range(multiple, int(layer.break_even) + 1, multiple)] for layer in LAYERS]
    every = (dict(zip("abc", combination, strict=True)) for combination in itertools.product(*choices))
    return min(loss(found, one) for one in every if spent(one) <= budget * DENSE)


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("budget", [0.4, 0.6, 0.8, 0.95])
def test_the_least_loss_is_near_that_of_an_exhaustive_search(rng, budget, convex):
    for _ in range(10):
        found = curves(rng, convex)
        chosen = ranks.least_loss(LAYERS, found, budget, 1)
        assert spent(chosen) <= budget * DENSE
        # Greedy: with three layers, what one step is worth may be lost, and no more.
        assert loss(found, chosen) <= search(found, budget, 1) + 0.15 * sum(curve[0] for curve in found.values())
        left = budget * DENSE - spent(chosen)
        for layer in LAYERS:
            if rank := chosen[layer.path]:
                assert left < layer.features_in + layer.features_out or rank + 1 >= layer.break_even


def test_steps_of_one_size_on_convex_curves_are_optimal(rng):
    """Three equal layers, dense far too dear: the best ranks take the largest drops."""
    layers = [LinearInfo(path, 40, 40, 17, "mlp") for path in "abc"]
    drops = {path: np.sort(rng.exponential(1, 40))[::-1] for path in "abc"}
    found = {path: np.append(np.cumsum(one[::-1])[::-1], 0) + 100 * (np.arange(41) == 0) for path, one in drops.items()}
    chosen = ranks.least_loss(layers, found, 0.5, 1)
    count = sum(chosen.values())
    assert count == int(0.5 * 3 * 1600 / 80)
    firsts = [one[0] for one in drops.values()]
    rest = sorted(np.concatenate([one[1:] for one in drops.values()]))[::-1]
    kept = sum(firsts) + sum(rest[: count - 3])
    np.testing.assert_allclose(loss(found, chosen), sum(one.sum() for one in drops.values()) - kept)


def test_more_budget_never_loses_more_and_ranks_are_multiples_that_pay(rng):
    found, last = curves(rng), np.inf
    for budget in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        chosen = ranks.least_loss(LAYERS, found, budget, 2)
        assert loss(found, chosen) <= last
        last = loss(found, chosen)
        for layer in LAYERS:
            assert chosen[layer.path] % 2 == 0
            assert chosen[layer.path] < layer.break_even


def test_another_cost_changes_what_is_worth_keeping(rng):
    wide = [LinearInfo("a", 32, 32, 100, "mlp"), LinearInfo("b", 32, 32, 1, "mlp")]
    one = np.append(np.cumsum(np.linspace(1, 2, 32))[::-1], 0)
    found = {"a": one, "b": one}
    by_parameters = ranks.least_loss(wide, found, 0.6, 1)
    by_macs = ranks.least_loss(wide, found, 0.6, 1, ranks.macs)
    assert by_parameters["a"] == 0 or by_parameters["b"] == 0 or by_parameters["a"] == by_parameters["b"]
    assert by_macs["b"] == 0 and 0 < by_macs["a"] < 16
    table = {"layers": [{"features_in": 32, "features_out": 32, "tokens": 100, "ms": {"0": 1, "8": 0.5, "16": 0.9}}]}
    cost = ranks.latency(table)
    assert [cost(wide[0], rank) for rank in (0, 8, 12, 16)] == pytest.approx([1, 0.5, 0.7, 0.9])
    with pytest.raises(UserError, match="no layer of 32 x 32 with 1 rows"):
        cost(wide[1], 8)
    with pytest.raises(UserError, match="no table of bench layers"):
        ranks.latency({"rows": []})


def test_an_energy_threshold_is_common_to_all_layers_and_the_largest_that_fits(rng):
    found = curves(rng)
    chosen = ranks.energy(LAYERS, found, 0.7, 1)
    assert spent(chosen) <= 0.7 * DENSE
    kept = [1 - found[path][rank] / found[path][0] for path, rank in chosen.items() if rank]
    one_less = [1 - found[path][rank - 1] / found[path][0] for path, rank in chosen.items() if rank > 1]
    assert max(one_less) <= min(kept)  # one threshold lies between
    raised = {path: int(np.argmax(found[path] <= (1 - min(kept) - 1e-9) * found[path][0])) for path in chosen}
    raised = {layer.path: raised[layer.path] if raised[layer.path] < layer.break_even else 0 for layer in LAYERS}
    assert spent(raised) > 0.7 * DENSE


def test_a_uniform_rank_is_the_largest_that_fits(rng):
    chosen = ranks.uniform_rank(LAYERS, 0.7, 2)
    (rank,) = {rank for rank in chosen.values() if rank}
    assert spent(chosen) <= 0.7 * DENSE
    more = {layer.path: rank + 2 if rank + 2 < layer.break_even else 0 for layer in LAYERS}
    assert spent(more) > 0.7 * DENSE


@pytest.mark.parametrize("method", [ranks.least_loss, ranks.energy])
@pytest.mark.parametrize("budget", [0.0, 1.0, 0.05])
def test_a_budget_that_cannot_be_met_is_refused(rng, method, budget):
    with pytest.raises(UserError, match=r"plan\.budget"):
        method(LAYERS, curves(rng), budget, 4)


def test_a_rank_for_all_that_cannot_be_met_is_refused():
    with pytest.raises(UserError, match="leaves no rank"):
        ranks.uniform_rank(LAYERS, 0.05, 8)
