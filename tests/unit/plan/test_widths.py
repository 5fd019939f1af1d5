"""Bits of kernels chosen together with sizes: against an integer program, and against either alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from lraqvit_jax.plan import blocks
from lraqvit_jax.plan.cost import form_cost, layer_cost
from lraqvit_jax.plan.records import Integers, LayerPlan, LinearInfo, resolved
from tests.unit.plan import knapsack, layers

INTEGERS = (Integers(8), Integers(5), Integers(4), Integers(4, 4))
EIGHT = INTEGERS[0]
M, HIDDEN, HEADS, TOKENS = 8, 16, 2, 5


def deployed(info, layer):
    del info
    return dataclasses.replace(layer, form="quantized", bits=8, granularity="per_token_dynamic")


def falling(rng, length):
    return np.append(np.cumsum(rng.exponential(size=length))[::-1], 0) ** 2


@pytest.fixture
def problem(rng):
    made, curves, widths = [], {}, {}
    for index in range(2):
        path = f"blocks_{index}"
        made.append(blocks.Block(path, layers.attention(path, M, TOKENS, HEADS), layers.mlp(path, M, HIDDEN, TOKENS)))
        ranks = {HIDDEN: tuple(falling(rng, M) for _ in range(2)), 4: tuple(falling(rng, 4) for _ in range(2))}
        curves[path] = blocks.Curves(falling(rng, 4), falling(rng, 4), falling(rng, HIDDEN), ranks)
        for name in ("attn/query", "attn/key", "attn/value", "attn/proj", "mlp/fc1", "mlp/fc2"):
            widths[f"{path}/{name}"] = losses_of(rng)
    cost = form_cost("bytes", deployed)
    head = LinearInfo("head", M, 6, 1, "head")
    return blocks.Problem(made, curves, cost, 0.0, 2, 1, widths | {"head": losses_of(rng)}, [head])


def losses_of(rng):
    worse, worst = np.cumsum(rng.exponential(size=2))
    return dict(zip(INTEGERS, (0.0, 0.1 * worse, 5 * worst, 3 * worst), strict=True))


def everything(problem):
    """{part: [(sizes, cost, loss)]}: every size with all bits of its layers, by what the plan then stores."""
    found = {}
    for block in problem.blocks:
        whole, curves = blocks.full(block), problem.curves[block.path]
        for part, names in (("score", ("query", "key")), ("value", ("value", "proj"))):
            sizes = [{part: size} for size in range(1, whole.score + 1)]
            found[block.path, part] = combined(problem, block, sizes, names, curves)
        sizes = [
            {"width": width, "fc1": r1, "fc2": r2}
            for width in range(2, HIDDEN + 1, 2)
            for r1, r2 in itertools.product((0, 2, 4, 6), repeat=2)
            if max(r1, r2) < min(M, width)
        ]
        found[block.path, "mlp"] = combined(problem, block, sizes, ("fc1", "fc2"), curves)
    (head,) = problem.others
    rows = []
    for integers, loss in problem.widths["head"].items():
        layer = LayerPlan(weight_bits=integers.bits, group=integers.group)
        chosen = blocks.Sizes(integers=(("head", integers),))
        rows.append((chosen, layer_cost(head, deployed(head, layer)).bytes, loss))
    found["head", "whole"] = rows
    return found


def combined(problem, block, sizes, names, curves):
    made, infos = [], (*block.attention, *block.mlp)
    for size, integers in itertools.product(sizes, itertools.product(INTEGERS, repeat=2)):
        of_layers = tuple(zip(names, integers, strict=True))
        chosen = blocks.full(block)._replace(**size, integers=of_layers)
        loss = sum(curves.loss(part, chosen) for part in size)
        for name, width in of_layers:
            factors = 2 if name in size and name.startswith("fc") and size[name] else 1  # a pair is rounded twice
            folder = "mlp" if name.startswith("fc") else "attn"
            loss += factors * problem.widths[f"{block.path}/{folder}/{name}"][width]
        plan = blocks.entries(block, chosen)
        stored = [info for info in resolved(infos, plan) if info.path.rpartition("/")[2] in names]
        cost = sum(layer_cost(info, deployed(info, plan[info.path])).bytes for info in stored)
        made.append((chosen, cost, loss))
    return made


def groups(found, kept=lambda sizes: True):
    return [
        knapsack.Group(*np.array([row[1:] for row in sorted(rows, key=lambda row: row[1]) if kept(row[0])], float).T)
        for rows in found.values()
    ]


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.8, 0.95])
def test_it_is_the_integer_programs_up_to_one_step_and_loses_to_neither_alone(problem, share):
    found = everything(problem)
    whole = sum(min(row[1] for row in rows if row[2] == 0) for rows in found.values())
    limit = np.floor(share * whole) + 0.5
    scales = {(block.path, part): blocks.Scale() for block in problem.blocks for part in blocks.PARTS}
    chosen = dataclasses.replace(problem, limit=limit).solve(scales)
    spent = lost = 0.0
    for (path, part), rows in found.items():
        names = {"score": ("query", "key"), "value": ("value", "proj"), "mlp": ("fc1", "fc2"), "whole": ("head",)}[part]
        integers = dict(chosen[path].integers)
        fields = {"mlp": ("width", "fc1", "fc2"), "whole": ()}.get(part, (part,))
        (row,) = [
            row
            for row in rows
            if all(getattr(row[0], field) == getattr(chosen[path], field) for field in fields)
            and dict(row[0].integers) == {name: integers[name] for name in names}
        ]
        spent, lost = spent + row[1], lost + row[2]
    assert spent <= limit
    best, all_groups = knapsack.least(groups(found), limit), groups(found)
    optimum, slope = knapsack.relaxed(all_groups, limit)
    step = knapsack.split_step(all_groups, slope)
    assert best <= lost + 1e-6
    assert lost <= optimum + step + 1e-6
    narrow = knapsack.least(groups(found, lambda sizes: {one for _, one in sizes.integers} == {EIGHT}), limit)
    full = (blocks.full(problem.blocks[0]), blocks.Sizes())
    rounded = knapsack.least(groups(found, lambda sizes: sizes._replace(integers=()) in full), limit)
    for alone in (narrow, rounded):
        assert alone is None or lost <= alone + step + 1e-6


def test_the_plan_says_the_bits(problem):
    whole = sum(max(row[1] for row in rows) for rows in everything(problem).values())
    scales = {(block.path, part): blocks.Scale() for block in problem.blocks for part in blocks.PARTS}
    chosen = dataclasses.replace(problem, limit=0.5 * whole).solve(scales)
    for block in problem.blocks:
        plan = blocks.entries(block, chosen[block.path])
        integers = dict(chosen[block.path].integers)
        by_name = {path.rpartition("/")[2]: layer for path, layer in plan.items()}
        assert {name: Integers(layer.weight_bits, layer.group) for name, layer in by_name.items()} == integers
        bits = {name: one.bits for name, one in integers.items()}
        for name, other in (("key", "query"), ("value", "proj")):  # no identity block where either has few bits
            assert bool(by_name[name].basis) == (min(bits[name], bits[other]) == 8)
        for name in ("fc1", "fc2"):
            assert bool(by_name[name].basis) == (by_name[name].rank > 0 and bits[name] == 8)


def test_a_plan_says_the_integers_of_layers_that_keep_their_sizes(problem):
    whole = sum(max(row[1] for row in rows) for rows in everything(problem).values())
    scales = {(block.path, part): blocks.Scale() for block in problem.blocks for part in blocks.PARTS}
    chosen = dataclasses.replace(problem, limit=0.4 * whole).solve(scales)
    infos = [info for block in problem.blocks for info in (*block.attention, *block.mlp)]
    plan = blocks.plan_of([*infos, *problem.others], chosen)
    ((_, integers),) = chosen["head"].integers
    assert integers != EIGHT
    assert plan["head"] == LayerPlan(weight_bits=integers.bits, group=integers.group)
    assert list(plan)[-1] == "head"


@pytest.mark.parametrize("integers", [Integers(3), Integers(4, 64)])
def test_integers_are_written_as_they_are_read(integers):
    assert Integers.read(str(integers)) == integers
