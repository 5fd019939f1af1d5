"""Sizes of blocks under one budget, against an integer program over all of their combinations, and against arrays."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.devices import sharding
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.cost import form_cost
from lraqvit_jax.plan.records import LayerPlan, resolved
from tests.unit import small
from tests.unit.plan import knapsack, layers

UNITS = ("params", "macs", "bytes", "measured")
ROUNDING = 1e-6
"""Share of the largest loss by which the solver's answers may be off: its own tolerances are 1e-7."""


class Instance(NamedTuple):
    """Blocks, what their parts lose, and in what they are paid for.

    Attributes:
        blocks: whose sizes are chosen.
        curves: of each, by its path.
        factors: what each part's losses are multiplied by, by path and part.
        unit: of UNITS.
        times: by multiply-accumulates modulo their number; of the unit "measured", which need not rise with sizes.
        multiple: of hidden widths and ranks.
        head_multiple: of channels of a head.
    """

    blocks: list
    curves: dict
    factors: dict
    unit: str
    times: list
    multiple: int
    head_multiple: int

    def solve(self, limit):
        costs = {"measured": lambda info, layer: self.of_layer(form_cost("macs", None)(info, layer), 0, 0)}
        cost = costs.get(self.unit) or form_cost(self.unit, lambda info, layer: layer)
        scales = {key: blocks.Scale(factor) for key, factor in self.factors.items()}
        problem = blocks.Problem(self.blocks, self.curves, cost, limit, self.multiple, self.head_multiple)
        return problem.solve(scales)

    def of_layer(self, macs, params, copied):
        """What a layer costs, of its multiply-accumulates, parameters, and channels that are named to be copied."""
        if self.unit == "measured":
            return self.times[macs % len(self.times)]
        return {"params": params, "macs": macs, "bytes": 4 * params + 2 * copied}[self.unit]

    def cost(self, infos, shapes):
        """Of layers with these arrays: kernels, biases and bases, (kernel shapes, outputs with a bias, copied)."""
        total = 0
        for info, (kernels, bias, copied) in zip(infos, shapes, strict=True):
            count = sum(map(math.prod, kernels))
            total += self.of_layer(info.tokens * count, count + bias, copied)
        return total

    def choices(self):
        """{block:part: {sizes: (cost, loss)}}, all combinations: of a head's channels, and of width, rank and rank."""
        found = {}
        for block in self.blocks:
            curves, factor = self.curves[block.path], {part: self.factors[block.path, part] for part in blocks.PARTS}
            for part, arrays in (("score", score_arrays), ("value", value_arrays)) if block.attention else ():
                (m, heads), info = (block.attention[0].features_in, block.attention[0].heads), block.attention[0]
                found[f"{block.path}:{part}"] = {
                    (s,): (self.cost([info, info], arrays(m, heads, s)), factor[part] * getattr(curves, part)[s])
                    for s in allowed(m // heads, self.head_multiple)
                }
            if block.mlp:
                found[f"{block.path}:mlp"] = self.of_mlp(block, curves, factor)
        return found

    def of_mlp(self, block, curves, factor):
        m, hidden = block.mlp[0].features_in, block.mlp[0].features_out
        made = {}
        for width in allowed(hidden, self.multiple):
            ranks = [0, *(r for r in allowed(m, self.multiple) if r < min(m, width))]
            for r1, r2 in itertools.product(ranks, ranks):
                loss = factor["width"] * curves.width[width]
                loss += factor["fc1"] * between(curves.ranks, 0, width, r1) if r1 else 0
                loss += factor["fc2"] * between(curves.ranks, 1, width, r2) if r2 else 0
                made[width, r1, r2] = (self.cost(block.mlp, mlp_arrays(m, width, r1, r2)), loss)
        return made


def allowed(whole, multiple):
    return [size for size in range(1, whole + 1) if size % multiple == 0 or size == whole]


def between(curves, side, width, rank):
    """A loss at a width, on the line between the widths next to it whose losses are known."""
    below, above = max(w for w in curves if w <= width), min(w for w in curves if w >= width)
    first, second = (dict(enumerate(curves[w][side])).get(rank, 0.0) for w in (below, above))
    return first if above == below else first + (width - below) / (above - below) * (second - first)


def score_arrays(m, heads, s):
    """Of query and key: the query's bias stays, and each head copies s inputs into its keys."""
    return ([(m, heads * s)], heads * s, 0), ([(m - s, heads * s)], 0, heads * s)


def value_arrays(m, heads, s):
    """Of value and projection: the projection's bias stays, and each head copies s inputs into its values."""
    return ([(m - s, heads * s)], 0, heads * s), ([(heads * s, m)], m, 0)


def mlp_arrays(m, width, r1, r2):
    """Of fc1 and fc2; the first r1 hidden units, and some r2 outputs, are what is between the factors."""
    first = [(m, r1), (r1, width - r1)] if r1 else [(m, width)]
    second = [(width, r2), (r2, m - r2)] if r2 else [(width, m)]
    return (first, width, 0), (second, m, r2)


@st.composite
def falling(draw, length):
    """A loss for each number from 0 to `length`, none of them below the next: whole, with many ties."""
    values = draw(st.sampled_from([st.integers(0, 60), st.integers(0, 10**5), st.just(1), st.sampled_from([0, 1, 7])]))
    drops = draw(st.lists(values, min_size=length, max_size=length))
    drops = sorted(drops, reverse=True) if draw(st.booleans()) else drops
    return np.append(np.cumsum(drops[::-1])[::-1], 0).astype(float)


@st.composite
def instances(draw, unit):
    shapes = draw(st.lists(st.tuples(*map(st.integers, (1, 1, 2, 1), (3, 3, 8, 9))), min_size=1, max_size=3))
    made, curves = [], {}
    for index, (heads, k, hidden, tokens) in enumerate(shapes):
        path, m = f"blocks_{index}", heads * k
        attention, mlp = layers.attention(path, m, tokens, heads), layers.mlp(path, m, hidden, tokens)
        parts = draw(st.sampled_from([(attention, mlp), (attention, mlp), (attention, ()), ((), mlp)]))
        made.append(blocks.Block(path, *parts))
        known = {1, hidden, *draw(st.lists(st.integers(1, hidden), max_size=2))}
        ranks = {width: tuple(draw(falling(min(m, width))) for _ in range(2)) for width in known}
        curves[path] = blocks.Curves(draw(falling(k)), draw(falling(k)), draw(falling(hidden)), ranks)
    factors = {(block.path, part): draw(st.sampled_from([1.0, 3.0, 0.5])) for block in made for part in blocks.PARTS}
    times = draw(st.lists(st.integers(1, 400), min_size=7, max_size=7))
    multiples = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    return Instance(made, curves, factors, unit, times, *multiples)


@pytest.mark.parametrize("unit", UNITS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), share=st.floats(0.02, 1.1))
def test_the_sizes_are_those_of_an_integer_program_up_to_one_step(unit, data, share):
    """Of `test_budget.test_the_least_loss_is_that_of_an_integer_program_up_to_one_step` the bound, for whole blocks."""
    instance = data.draw(instances(unit))
    choices = instance.choices()
    groups = [knapsack.Group(*np.array(list(of_part.values()), float).T) for of_part in choices.values()]
    limit = np.floor(share * sum(group.cost[-1] for group in groups)) + 0.5
    best = knapsack.least(groups, limit)
    if best is None:
        with pytest.raises(ValueError, match="beyond the limit"):
            instance.solve(limit)
        return
    chosen, spent, lost = instance.solve(limit), 0.0, 0.0
    for name, of_part in choices.items():
        path, _, part = name.rpartition(":")
        sizes = chosen[path][2:5] if part == "mlp" else (getattr(chosen[path], part),)
        assert sizes in of_part
        spent, lost = spent + of_part[sizes][0], lost + of_part[sizes][1]
    assert spent <= limit
    tolerance = ROUNDING * max(group.loss.max() for group in groups)
    optimum, slope = knapsack.relaxed(groups, limit)
    assert best <= lost + tolerance
    assert lost <= optimum + knapsack.split_step(groups, slope) + tolerance


def in_floats(info, layer):
    del info
    return layer


def in_integers(info, layer):
    del info
    return dataclasses.replace(layer, form="quantized", bits=6, weight_bits=4, group=5, granularity="per_token")


def declared(model, layers, plan, unit):
    """What the arrays that a model declares for these layers come to."""
    made = models.create(model, num_classes=5, image_size=8, plan=plan)
    params, total = sharding.abstract_params(made, 8, small.MESH), 0
    for info in layers:
        leaves = jax.tree.leaves(trees.get(params, info.path))
        floats = [leaf for leaf in leaves if leaf.dtype == np.float32]
        kernels = sum(leaf.size for leaf in floats if len(leaf.shape) == 2)
        total += {
            "params": sum(leaf.size for leaf in floats),
            "macs": info.tokens * kernels,
            "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        }[unit]
    return total


@pytest.mark.parametrize("model", ["vit_pico", "swin_pico"])
@pytest.mark.parametrize(
    ("unit", "deployed"),
    [("params", in_floats), ("macs", in_floats), ("bytes", in_floats), ("bytes", in_integers)],
    ids=["params", "macs", "bytes", "bytes of integers"],
)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_arrays_of_the_chosen_sizes_keep_the_limit(model, unit, deployed, share, rng):
    """And fill nine tenths of it: the largest step is smaller."""
    spec = models.spec(model, num_classes=5, image_size=8)
    encoder = [info for info in spec.layers if info.compressible]
    parts = blocks.blocks(encoder)

    def curve(length):
        return np.append(np.cumsum(rng.random(length))[::-1], 0)

    curves = {}
    for one in parts:
        m, whole = one.mlp[0].features_in, blocks.full(one)
        ranks = {width: (curve(min(m, width)), curve(min(m, width))) for width in (whole.width // 4, whole.width)}
        curves[one.path] = blocks.Curves(curve(whole.score), curve(whole.value), curve(whole.width), ranks)
    cost = form_cost(unit, deployed)
    limit = share * sum(cost(info, LayerPlan()) for info in encoder)
    scales = {(one.path, part): blocks.Scale() for one in parts for part in blocks.PARTS}
    chosen = blocks.Problem(parts, curves, cost, limit, 8, 4).solve(scales)
    plan = blocks.plan_of(spec.layers, chosen)
    check(plan, spec.layers)
    layers = [info for info in resolved(spec.layers, plan) if info.compressible]
    plan |= {info.path: deployed(info, plan[info.path]) for info in layers}
    assert 0.9 * limit < declared(model, layers, plan, unit) <= limit
