"""Sizes of blocks under one budget: score and value products, hidden units, ranks of fc1 and fc2.

A part of the network whose cost stands alone is the attention's score product, its value product, or a whole MLP, whose
three sizes share their cost. What a choice loses is predicted by closed forms (`lowrank.block`), and the predictions
are scaled by what was measured. The choices of least loss within the budget are those of `budget.cheapest`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lraqvit_jax.base import console
from lraqvit_jax.plan.budget import Choice, Curve, cheapest
from lraqvit_jax.plan.cost import FormCost
from lraqvit_jax.plan.records import Integers, LayerPlan, LinearInfo, Plan, by_head, pivoted, resolved, sibling

PRIOR = 3.0
"""What a measured change is to its prediction where nothing was measured: errors of the tokens of an image add up."""
PARTS = ("score", "value", "width", "fc1", "fc2")
UNITS, RANKS = 48, 24
"""Sizes that a block may have: of hidden units and of ranks, at most."""


class Block(NamedTuple):
    """The dense layers of a block that may be changed.

    Attributes:
        path: of the block.
        attention: qkv and proj, or none.
        mlp: fc1 and fc2, or none.
    """

    path: str
    attention: tuple[LinearInfo, ...]
    mlp: tuple[LinearInfo, ...]


class Sizes(NamedTuple):
    """What is left of a block.

    Attributes:
        score: channels of query and key in each head.
        value: channels of value and projection in each head.
        width: hidden units.
        fc1: its rank, 0 for a whole kernel.
        fc2: likewise.
        integers: of kernels, by the name of their layer, where they are chosen with the sizes.
    """

    score: int = 0
    value: int = 0
    width: int = 0
    fc1: int = 0
    fc2: int = 0
    integers: tuple[tuple[str, Integers], ...] = ()


def blocks(layers: Iterable[LinearInfo]) -> list[Block]:
    """The blocks of layers that may be changed; one whose qkv or proj is missing keeps its attention, one without fc1
    or fc2 its MLP. Where a LayerNorm sees queries and keys, the attention stays: they are no product of two kernels."""
    infos = {info.path: info for info in layers}
    paths = list(dict.fromkeys(path.rpartition("/")[0].rpartition("/")[0] for path in infos))
    made = []
    for path in paths:
        parts = []
        for names in (("attn/qkv", "attn/proj"), ("mlp/fc1", "mlp/fc2")):
            there = tuple(infos[f"{path}/{name}"] for name in names if f"{path}/{name}" in infos)
            parts.append(there if len(there) == len(names) and not there[0].normed else ())
        if any(parts):
            made.append(Block(path, *parts))
    return made


def narrowed(layers: Iterable[LinearInfo], plan: Plan) -> list[Block]:
    """The blocks of which the plan leaves fewer channels or hidden units, or has the attention by head, without their
    parts that stay as they are."""
    made = []
    for block in blocks(layers):
        attention = block.attention if block.attention and by_head(block.attention[0], plan) else ()
        mlp = block.mlp if block.mlp and plan[block.mlp[0].path].width else ()
        if attention or mlp:
            made.append(Block(block.path, attention, mlp))
    return made


def full(block: Block) -> Sizes:
    """The sizes that lose nothing."""
    head = block.attention[0].features_out // 3 // block.attention[0].heads if block.attention else 0
    return Sizes(head, head, block.mlp[1].features_in if block.mlp else 0)


FIXED = 8
"""Bits from which on kernels have identity blocks, which spread the values of the other kernel: too many for fewer."""


def entries(block: Block, sizes: Sizes) -> dict[str, LayerPlan]:
    """The block's part of the plan, float and deployed: identity blocks wherever they save parameters, and both kernels
    have bits enough."""
    whole, made, integers = full(block), dict[str, LayerPlan](), dict(sizes.integers)

    def fixed(*names: str) -> bool:
        return all(integers[name].bits >= FIXED for name in names if name in integers)

    if block.attention:
        qkv, proj = block.attention
        score, value = (size if size < whole.score else 0 for size in (sizes.score, sizes.value))
        made[sibling(qkv.path, "query")] = LayerPlan(width=score)
        for name, other, size in (("key", "query", score), ("value", "proj", value)):
            pivot = LayerPlan("pivoted", width=size, basis="input")
            made[sibling(qkv.path, name)] = pivot if fixed(name, other) else LayerPlan(width=size)
        made[proj.path] = LayerPlan(width=value)
    if block.mlp:
        width = sizes.width if sizes.width < whole.width else 0
        for info, rank in zip(block.mlp, (sizes.fc1, sizes.fc2), strict=True):
            if rank and fixed(info.path.rpartition("/")[2]):
                made[info.path] = pivoted(info, rank, width)
            else:
                made[info.path] = LayerPlan("low_rank" if rank else "dense", rank=rank, width=width)
    return {path: _in_integers(layer, integers.get(path.rpartition("/")[2])) for path, layer in made.items()}


def _in_integers(layer: LayerPlan, integers: Integers | None) -> LayerPlan:
    """An entry with those of its kernels, where they are chosen."""
    return dataclasses.replace(layer, weight_bits=integers.bits, group=integers.group) if integers else layer


def sizes_of(block: Block, plan: Plan) -> Sizes:
    """The sizes of a block in a plan, which may be edited."""
    whole = full(block)

    def size(info: LinearInfo, name: str, field: str, otherwise: int) -> int:
        layer = plan.get(sibling(info.path, name), LayerPlan())
        return getattr(layer, field) or otherwise

    score = value = width = fc1 = fc2 = 0
    if block.attention:
        score, value = (size(block.attention[0], name, "width", whole.score) for name in ("query", "value"))
    if block.mlp:
        width = size(block.mlp[0], "fc1", "width", whole.width)
        fc1, fc2 = (size(block.mlp[0], name, "rank", 0) for name in ("fc1", "fc2"))
    return Sizes(score, value, width, fc1, fc2)


class Curves(NamedTuple):
    """What one block is predicted to lose, by part.

    Attributes:
        score: with 0, 1, ... all channels a head.
        value: likewise.
        width: with 0, 1, ... all hidden units.
        ranks: by a number of hidden units, what fc1 and fc2 lose at every rank; between two numbers what is between.
    """

    score: Curve
    value: Curve
    width: Curve
    ranks: Mapping[int, tuple[Curve, Curve]]

    def rank(self, part: str, width: int, rank: int) -> float:
        """What fc1 or fc2 loses at a rank, with so many hidden units; 0 is a whole kernel."""
        if not rank:
            return 0.0
        index = ("fc1", "fc2").index(part)
        widths = sorted(self.ranks)
        losses = [curves[index][rank] if rank < len(curves[index]) else 0.0 for _, curves in sorted(self.ranks.items())]
        return float(np.interp(width, widths, losses))

    def loss(self, part: str, sizes: Sizes) -> float:
        """What one part of a block loses at these sizes, the others whole."""
        if part in ("fc1", "fc2"):
            return self.rank(part, sizes.width, getattr(sizes, part))
        return float(getattr(self, part)[getattr(sizes, part)])


class Scale:
    """From what closed forms predict to what was measured: exact where there was a measurement, a line in logarithms
    between two, and the nearest one's factor beyond."""

    def __init__(self, prior: float = 1.0) -> None:
        self.prior, self.points = prior, dict[float, float]()

    def __call__(self, predicted: Float[np.ndarray, "..."] | float) -> Float[np.ndarray, "..."]:
        predicted = np.asarray(predicted, float)
        points = sorted((x, y) for x, y in self.points.items() if x > 0 and y > 0)
        if not points:
            return predicted * self.prior
        where = np.log([x for x, _ in points])
        factors = np.log([y / x for x, y in points])
        return predicted * np.exp(np.interp(np.log(np.maximum(predicted, 1e-300)), where, factors))


Scales = Mapping[tuple[str, str], Scale]
"""By path of a block and part."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What there is to choose, for `solve`.

    Attributes:
        blocks: whose sizes are chosen.
        curves: of each, by its path.
        cost: of a layer in a form.
        limit: of the sum of all costs.
        multiple: of which hidden widths and ranks are.
        head_multiple: of which channels of a head are.
        widths: what each layer loses with its kernels in such integers, by its path, where these are chosen, too.
        others: layers that keep their sizes, but whose integers are chosen: by path, `widths` has each.
        costs: of layers at sizes, as they were asked for.
    """

    blocks: list[Block]
    curves: Mapping[str, Curves]
    cost: FormCost
    limit: float
    multiple: int
    head_multiple: int
    widths: Mapping[str, Mapping[Integers, float]] = dataclasses.field(default_factory=dict)
    others: Sequence[LinearInfo] = ()
    costs: dict[Any, float] = dataclasses.field(default_factory=dict)

    def solve(self, scales: Scales) -> dict[str, Sizes]:
        """The sizes of each block, and of `others` the integers, with the least loss within the limit; ValueError where
        the smallest are too large."""
        choices = {info.path: self._whole(info) for info in self.others}
        for block in self.blocks:
            for name, options in self._choices(block, scales):
                choices[f"{block.path}:{name}"] = options
        chosen = cheapest(choices, self.limit)
        made = {info.path: Sizes(**chosen[info.path].size) for info in self.others}
        for block in self.blocks:
            sizes = full(block)
            for name in ("score", "value", "mlp"):
                if choice := chosen.get(f"{block.path}:{name}"):
                    integers = sizes.integers + choice.size.get("integers", ())
                    sizes = sizes._replace(**{**choice.size, "integers": integers})
            made[block.path] = sizes
        return made

    def _whole(self, info: LinearInfo) -> list[Choice]:
        """A layer in all integers that it may have."""
        name = info.path.rpartition("/")[2]
        return undominated(
            [
                Choice(self.cost(info, _in_integers(LayerPlan(), integers)), loss, {"integers": ((name, integers),)})
                for integers, loss in self.widths[info.path].items()
            ]
        )

    def _choices(self, block: Block, scales: Scales) -> Iterator[tuple[str, list[Choice]]]:
        whole, curves = full(block), self.curves[block.path]
        if block.attention:
            for part, layers in (("score", ("query", "key")), ("value", ("value", "proj"))):
                sizes = steps(whole.score, self.head_multiple, whole.score)
                losses = scales[block.path, part](getattr(curves, part)[sizes])
                made = [
                    Choice(self._cost(block, whole._replace(**size), layers), loss + lost, size)
                    for channels, loss in zip(sizes, losses, strict=True)
                    for lost, size in self._rounded(block.attention[0].path, {part: channels}, layers)
                ]
                yield part, undominated(made)
        if block.mlp:
            yield "mlp", self._mlp(block, curves, scales)

    def _mlp(self, block: Block, curves: Curves, scales: Scales) -> list[Choice]:
        whole = full(block)

        def lost(width: int) -> float:
            return float(scales[block.path, "width"](curves.width[width]))

        def side(part: str, width: int, ranks: Sequence[int]) -> list[Choice]:
            tried = [whole._replace(width=width, **dict[str, Any]({part: rank})) for rank in ranks]
            losses = scales[block.path, part](np.array([curves.loss(part, one) for one in tried]))
            return [
                Choice(self._cost(block, one._replace(**size), (part,)), loss + rounding, size)
                for one, loss, rank in zip(tried, losses, ranks, strict=True)
                for rounding, size in self._rounded(block.mlp[0].path, {part: rank}, (part,), pair=bool(rank))
            ]

        smaller = min(block.mlp[0].features_in, block.mlp[1].features_out)
        return mlp_choices(whole.width, smaller, self.multiple, lost, side)

    def _rounded(
        self, near: str, size: dict[str, int], layers: Sequence[str], pair: bool = False
    ) -> Iterator[tuple[float, dict[str, Any]]]:
        """A size in all integers of the kernels of these layers, siblings of the layer `near`, with what rounding
        loses; as it is where none are chosen.

        Two factors are rounded each, so a pair loses twice what its kernel would."""
        if not self.widths:
            yield 0.0, size
            return
        of_layers = [self.widths[sibling(near, name)] for name in layers]
        for each in itertools.product(*of_layers):
            lost = sum(losses[integers] for losses, integers in zip(of_layers, each, strict=True))
            yield (1 + pair) * lost, {**size, "integers": tuple(zip(layers, each, strict=True))}

    def _cost(self, block: Block, sizes: Sizes, layers: tuple[str, ...]) -> float:
        """What some layers of a block cost; blocks of the same shapes share it."""
        infos = (*block.attention, *block.mlp)
        shapes = tuple((info.features_in, info.features_out, info.tokens, info.heads, info.bias) for info in infos)
        key = (shapes, sizes, layers)
        if key not in self.costs:
            plan = entries(block, sizes)
            of_plan = [info for info in resolved(infos, plan) if info.path.rpartition("/")[2] in layers]
            self.costs[key] = sum(self.cost(info, plan[info.path]) for info in of_plan)
        return self.costs[key]


def mlp_choices(
    units: int,
    smaller: int,
    multiple: int,
    lost: Callable[[int], float],
    side: Callable[[str, int, Sequence[int]], list[Choice]],
) -> list[Choice]:
    """Every number of hidden units with every two ranks, of sizes {"width", "fc1", "fc2"}, and "integers" where these
    are chosen, too.

    Args:
        units: all of them.
        smaller: the smaller of the features that fc1 reads and fc2 gives.
        multiple: of which widths and ranks are.
        lost: with so many units.
        side: what "fc1" or "fc2" can be with so many units, of these ranks, 0 for a whole kernel.
    """
    costs, losses, sizes = [], [], list[tuple[int, Choice, Choice]]()
    for width in steps(units, multiple, UNITS):
        ranks = [0, *(rank for rank in steps(smaller, multiple, RANKS) if rank < min(smaller, width))]
        firsts, seconds = (undominated(side(part, width, ranks)) for part in ("fc1", "fc2"))
        (cost1, loss1), (cost2, loss2) = (np.array([one[:2] for one in of_one]).T for of_one in (firsts, seconds))
        costs.append((cost1[:, None] + cost2).reshape(-1))
        losses.append((lost(width) + loss1[:, None] + loss2).reshape(-1))
        sizes += [(width, first, second) for first in firsts for second in seconds]
    cost, loss = np.concatenate(costs), np.concatenate(losses)
    return [Choice(float(cost[i]), float(loss[i]), _joined(*sizes[i])) for i in _best(cost, loss)]


def _joined(width: int, first: Choice, second: Choice) -> dict[str, Any]:
    integers = first.size.get("integers", ()) + second.size.get("integers", ())
    return {**first.size, **second.size, "width": width, **({"integers": integers} if integers else {})}


def settle(
    solve: Callable[[], Mapping[str, Any]],
    predicted: Callable[[str, str, Any], float],
    measure: Callable[[str, str, Any], float],
    scales: Scales,
    rounds: int,
) -> Mapping[str, Any]:
    """The sizes of everything: as predicted, then measured there and chosen anew, that many times.

    Args:
        solve: the best sizes by name, by the scales as they are.
        predicted: what a part of a name loses at these sizes, all else whole.
        measure: the same, measured.
        scales: by name and part; what was measured so far; gains what is measured.
        rounds: how many.
    """
    chosen = solve()
    for index in range(rounds):
        losses = {(name, part): predicted(name, part, chosen[name]) for name, part in scales if name in chosen}
        unknown = [key for key, loss in losses.items() if loss > 0 and loss not in scales[key].points]
        for name, part in console.progress(unknown, f"sizes, round {index + 1}", "part", len(unknown)):
            scales[name, part].points[losses[name, part]] = measure(name, part, chosen[name])
        _share(scales)
        chosen, before = solve(), chosen
        if chosen == before:
            break
    return chosen


def _share(scales: Scales) -> None:
    """Where a part was not measured, the median of what others say of that part is taken."""
    for part in {part for _, part in scales}:
        alike = [scale for (_, name), scale in scales.items() if name == part]
        factors = [y / x for scale in alike for x, y in scale.points.items()]
        for scale in alike if factors else ():
            scale.prior = float(np.median(factors))


def steps(whole: int, multiple: int, count: int) -> list[int]:
    """Sizes up to `whole`, all of it included: multiples, at most about `count` of them."""
    step = multiple * max(1, -(-whole // (multiple * count)))
    return [*range(step, whole, step), whole]


def undominated(choices: Sequence[Choice]) -> list[Choice]:
    """The choices, by rising cost, that lose less than all that cost less or as much. (A latency need not rise with
    sizes.)"""
    cost, loss = (np.array([choice[field] for choice in choices], float) for field in (0, 1))
    return [choices[index] for index in _best(cost, loss)]


def _best(cost: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    order = np.lexsort((loss, cost))
    least = np.minimum.accumulate(loss[order])
    return order[np.flatnonzero(np.append(True, least[1:] < least[:-1]))]


def plan_of(layers: Iterable[LinearInfo], chosen: Mapping[str, Sizes]) -> dict[str, LayerPlan]:
    """The float plan of a model, in the order of its layers: those of the blocks as chosen, all others dense, in the
    integers that were chosen for them."""
    layers = list(layers)
    planned = {
        info.path: _in_integers(LayerPlan(), dict(chosen[info.path].integers).get(info.path.rpartition("/")[2]))
        for info in layers
        if info.path in chosen
    }
    for block in blocks(layers):
        if block.path in chosen:
            planned |= entries(block, chosen[block.path])
    return {info.path: planned.get(info.path, LayerPlan()) for info in resolved(layers, planned)}
