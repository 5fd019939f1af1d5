"""Bits under a budget in bytes."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.cost import layer_cost, total_cost
from lraqvit_jax.plan.records import LayerPlan, LinearInfo
from lraqvit_jax.quant import mixed, quantize
from tests.unit import small
from tests.unit.plan import knapsack

PLAN = small.quantized_plan(small.RANK, "per_token_dynamic")


@st.composite
def problems(draw):
    """Quantized layers of any shape, and what their kernels diverge by at each width; some may not be narrowed."""
    layers, plan, divergences = [], {}, {}
    for index in range(draw(st.integers(1, 6))):
        m, n = draw(st.integers(2, 40)), draw(st.integers(2, 40))
        info = LinearInfo(f"layer_{index}", m, n, 5, "mlp")
        rank = draw(st.integers(0, max(0, -int(-info.break_even) - 1)))
        layers.append(info)
        plan[info.path] = LayerPlan("quantized", rank, 8, "per_token_dynamic", group=draw(st.sampled_from([0, 0, 8])))
        if draw(st.integers(0, 4)):
            first, second = draw(st.integers(0, 50) | st.integers(0, 10**6)), draw(st.integers(0, 10**5))
            divergences[info.path] = {8: 0.0, 6: float(first), 4: float(first + second)}
    return layers, plan, divergences


def groups(layers, plan, divergences):
    """The choices of each layer: its bytes and its divergence at each width; one that may not be narrowed has one."""
    made = []
    for info in layers:
        losses = divergences.get(info.path, {8: 0.0})
        sizes = [layer_cost(info, dataclasses.replace(plan[info.path], weight_bits=bits)).bytes for bits in losses]
        made.append(knapsack.Group(np.array(sizes, float), np.array([*losses.values()])))
    return made


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems(), st.floats(0, 1))
def test_the_divergence_is_that_of_an_integer_program_up_to_one_step(problem, share):
    """The model fits; and the divergence is no further from the least than one step down the hulls adds.

    From 8 bits everywhere, layers are narrowed along the lower convex hulls of (bytes, divergence) until the model
    fits. The linear relaxation takes the same steps, and of the last one only the part that is needed (Sinha and
    Zoltners 1979): relaxation <= integer optimum <= allocated <= relaxation + what that step adds. It is a step with
    the slope of the relaxation's multiplier; where the relaxation splits none, the allocation is the optimum.
    """
    layers, plan, divergences = problem
    choices = groups(*problem)
    least, most = (sum(end(group.cost) for group in choices) for end in (min, max))
    budget = np.floor(least + share * (most - least))
    chosen = mixed.allocate(plan, layers, divergences, budget)
    assert total_cost(chosen, layers).bytes <= budget
    assert {path: layer.weight_bits for path, layer in chosen.items() if path not in divergences} == {
        path: layer.weight_bits for path, layer in plan.items() if path not in divergences
    }
    loss = sum(divergences[path][chosen[path].weight_bits] for path in divergences)
    best, (optimum, slope) = knapsack.least(choices, budget), knapsack.relaxed(choices, budget)
    rounding = 1e-6 * max(group.loss.max() for group in choices)
    assert best <= loss + rounding
    assert loss <= optimum + knapsack.split_step(choices, slope) + rounding


def test_a_width_that_saves_nothing_is_passed_over():
    """At 6 bits a column of three rows takes as many bytes as at 8."""
    layer, plan = LinearInfo("a", 3, 40, 5, "mlp"), {"a": LayerPlan("quantized", 0, 8, "per_token_dynamic")}
    chosen = mixed.allocate(plan, [layer], {"a": {8: 0.0, 6: 1.0, 4: 100.0}}, total_cost(plan, [layer]).bytes - 1)
    assert chosen["a"].weight_bits == 4


def test_a_budget_that_four_bits_do_not_meet_says_by_how_much():
    divergences = {info.path: {8: 0.0, 6: 1.0, 4: 2.0} for info in small.LAYERS}
    with pytest.raises(UserError, match="MB less than the model takes at 4 bits"):
        mixed.allocate(PLAN, small.LAYERS, divergences, 100)


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
    assert all(list(costs) == [8, 6, 5, 4, 3] for costs in found.values())
    assert all(costs[8] == 0 < costs[6] <= costs[5] <= costs[4] <= costs[3] for costs in found.values())
    assert np.mean([costs[6] < 0.2 * costs[4] for costs in found.values()]) > 0.8
    assert changed[0] == {f"{small.LAYERS[0].path}/kernel"}
    assert {"blocks_0/attn/qkv/u", "blocks_0/attn/qkv/v"} in changed.values()
