"""Bits under a budget in bytes."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.plan.records import PACKED
from lraqvit_jax.quant import mixed, quantize
from tests.unit import small

BITS = (*PACKED, mixed.WIDEST)

PLAN = small.quantized_plan(small.RANK, "per_token_dynamic")


def made_up(rng):
    return {
        info.path: {8: 0.0, 6: (one := rng.gamma(1, 1) * 0.01), 4: one * rng.uniform(2, 30)} for info in small.LAYERS
    }


def total(one):
    return total_cost(one, small.LAYERS).bytes


def divergence(one, found):
    return sum(found[path][layer.weight_bits] for path, layer in one.items())


@pytest.mark.parametrize("share", [0.95, 0.85, 0.75])
def test_the_model_fits_and_costs_less_than_four_bits_everywhere(rng, share):
    found, budget = made_up(rng), share * total(PLAN)
    one = mixed.allocate(PLAN, small.LAYERS, found, budget)
    assert total(one) <= budget
    assert {layer.weight_bits for layer in one.values()} <= set(BITS)
    everywhere = {path: dataclasses.replace(layer, weight_bits=4) for path, layer in PLAN.items()}
    assert divergence(one, found) < divergence(everywhere, found)


def test_it_is_close_to_the_best_of_all_choices(rng):
    """Three layers may be narrowed: 27 plans, all tried."""
    chosen = [info for info in small.LAYERS if info.kind == "mlp"][:3]
    for draw in range(20):
        found = {path: costs for path, costs in made_up(rng).items() if path in {info.path for info in chosen}}
        sizes = {}
        for bits in itertools.product(BITS, repeat=3):
            one = dict(PLAN)
            for info, width in zip(chosen, bits, strict=True):
                one[info.path] = dataclasses.replace(one[info.path], weight_bits=width)
            cost = sum(found[info.path][width] for info, width in zip(chosen, bits, strict=True))
            sizes[bits] = (total(one), cost)
        budget = np.quantile([size for size, _ in sizes.values()], 0.2 + 0.03 * draw)
        best = min(cost for size, cost in sizes.values() if size <= budget)
        one = mixed.allocate(PLAN, small.LAYERS, found, budget)
        got = sum(found[info.path][one[info.path].weight_bits] for info in chosen)
        worst = max(cost for _, cost in sizes.values())
        assert best <= got <= best + 0.35 * worst


def test_a_budget_that_four_bits_do_not_meet_says_by_how_much(rng):
    with pytest.raises(UserError, match="MB less than the model takes at 4 bits"):
        mixed.allocate(PLAN, small.LAYERS, made_up(rng), 100)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_divergence_is_that_of_the_model_with_one_layer_rounded(rng, rounding):
    float_plan = small.float_plan(PLAN)
    params, batch = small.params(float_plan, rng), small.images(rng)
    products = quantize.products(params, PLAN, small.LAYERS, small.seen(float_plan, params, batch))
    run = jax.jit(small.model(float_plan).apply)
    exact = np.asarray(run({"params": params}, batch))
    changed = {}

    def measure(changes):
        changed[len(changed)] = set(changes)
        return float(np.sum(np.square(run({"params": trees.replace(params, changes)}, batch) - exact)))

    found = mixed.divergences(measure, products, rounding)
    assert set(found) == {info.path for info in small.LAYERS}
    assert all(costs[8] == 0 and 0 < costs[6] <= costs[4] for costs in found.values())
    assert np.mean([costs[6] < 0.2 * costs[4] for costs in found.values()]) > 0.8
    assert changed[0] == {f"{small.LAYERS[0].path}/kernel"}
    assert {"blocks_0/attn/qkv/u", "blocks_0/attn/qkv/v"} in changed.values()
