"""Ranks for a budget."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan.check import check_layer
from lraqvit_jax.plan.records import LayerPlan, LinearInfo


def uniform_ratio(layers: Iterable[LinearInfo], budget: float, multiple: int = 1) -> dict[str, int]:
    """Every layer keeps at most the share `budget` of its kernel's parameters: `r = budget * m n / (m + n)`.

    Args:
        layers: those to factorize.
        budget: share, in (0, 1).
        multiple: ranks are rounded down to it, for the hardware.

    Returns:
        Rank by layer path.

    Raises:
        UserError: the budget is not a share, or leaves a layer no rank.
    """
    _check_budget(budget, multiple)
    ranks = {}
    for layer in layers:
        rank = int(budget * layer.break_even) // multiple * multiple
        if rank < 1:
            raise UserError(
                f"plan.budget {budget} leaves layer {layer.path!r} no rank at multiples of {multiple}; "
                "raise plan.budget or lower plan.multiple."
            )
        ranks[layer.path] = rank
    return ranks


def _check_budget(budget: float, multiple: int) -> None:
    if not 0 < budget < 1:
        raise UserError(f"plan.budget is {budget}; give the share to keep, between 0 and 1.")
    if multiple < 1:
        raise UserError(f"plan.multiple is {multiple}; give the number that every rank is to be a multiple of, from 1.")


def by_kind(layers: Iterable[LinearInfo], ranks: Mapping[str, int]) -> dict[str, int]:
    """One rank for all "attention" layers and one for all "mlp" layers; 0 leaves them dense.

    A layer in which the rank does not pay (DeiT-T's square projection at 112) stays dense as well.

    Raises:
        UserError: a rank pays in no layer of its kind.
    """
    layers = list(layers)
    for kind, rank in ranks.items():
        widest = max((layer for layer in layers if layer.kind == kind), key=lambda layer: layer.break_even)
        if rank:
            check_layer(widest, LayerPlan("low_rank", rank))
    return {layer.path: ranks[layer.kind] if ranks[layer.kind] < layer.break_even else 0 for layer in layers}


def by_dimension(layers: Iterable[LinearInfo], budget: float, multiple: int = 1) -> dict[str, int]:
    """The share `budget` of a layer's smaller dimension, `r = budget * min(m, n)`, rounded down to the multiple.

    A layer in which that does not pay (a square one above one half) stays dense, rank 0.

    Raises:
        UserError: the budget is not a share.
    """
    _check_budget(budget, multiple)
    ranks = {}
    for layer in layers:
        rank = int(budget * min(layer.features_in, layer.features_out)) // multiple * multiple
        ranks[layer.path] = rank if rank < layer.break_even else 0
    return ranks


def uniform_rank(layers: Iterable[LinearInfo], budget: float, multiple: int = 1) -> dict[str, int]:
    """One rank for all layers, the largest multiple that keeps the share `budget` of their kernels' parameters.

    A layer in which it does not pay stays dense.

    Raises:
        UserError: the budget is not a share, or the smallest rank is too large for it.
    """
    _check_budget(budget, multiple)
    layers = list(layers)

    def ranks(rank: int) -> dict[str, int]:
        return {layer.path: rank if rank < layer.break_even else 0 for layer in layers}

    limit, best = budget * sum(parameters(layer, 0) for layer in layers), 0
    for rank in range(multiple, int(max(layer.break_even for layer in layers)) + 1, multiple):
        if sum(parameters(layer, ranks(rank)[layer.path]) for layer in layers) <= limit:
            best = rank
    if not best:
        raise UserError(
            f"plan.budget {budget} leaves no rank at multiples of {multiple}; raise it or lower the multiple."
        )
    return ranks(best)


Curve = Float[np.ndarray, " k+1"]
"""What a layer loses at every rank from 0 to full, descending to 0."""
Cost = Callable[[LinearInfo, int], float]
"""What a layer costs at a rank; 0 is dense."""


def parameters(layer: LinearInfo, rank: int) -> int:
    """Parameters of the kernel, or of the pair."""
    m, n = layer.features_in, layer.features_out
    return rank * (m + n) if rank else m * n


def macs(layer: LinearInfo, rank: int) -> int:
    """Multiply-accumulates of an image."""
    return layer.tokens * parameters(layer, rank)


def latency(table: Mapping) -> Cost:
    """Milliseconds of an image, by the table of `bench layers`; linear between the ranks it measured.

    Raises:
        UserError: the table lacks a layer's shape.
    """
    try:
        known = {
            (row["features_in"], row["features_out"], row["tokens"]): {int(rank): ms for rank, ms in row["ms"].items()}
            for row in table["layers"]
        }
        right = all(0 in ms and len(ms) > 1 and all(map(files.number, ms.values())) for ms in known.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        right = False
    if not right:
        raise UserError("plan.latency is no table of bench layers; measure it again.")

    def cost(layer: LinearInfo, rank: int) -> float:
        ms = known.get((layer.features_in, layer.features_out, layer.tokens))
        if ms is None:
            shape = f"{layer.features_in} x {layer.features_out} with {layer.tokens} rows"
            raise UserError(f"plan.latency has no layer of {shape}; run bench layers for this model and image size.")
        points = sorted(point for point in ms if point)
        return float(np.interp(rank, points, [float(ms[point]) for point in points])) if rank else ms[0]

    return cost


def least_loss(
    layers: Iterable[LinearInfo], curves: Mapping[str, Curve], budget: float, multiple: int = 1, cost: Cost = parameters
) -> dict[str, int]:
    """The ranks with the least sum of losses whose costs stay within the share `budget` of the dense layers' cost.

    Each layer's choices (every multiple, or dense, which loses nothing) are thinned to their lower convex hull, and
    the steps along all hulls taken in the order of loss saved per cost, which is optimal up to the first that does not
    fit. What the budget then leaves over goes to the choices between, again by loss saved per cost.

    Args:
        layers: those to factorize.
        curves: loss by rank, by path.
        budget: share, in (0, 1).
        multiple: of which every rank is one.
        cost: of a layer at a rank.

    Raises:
        UserError: the budget is not a share, or the smallest ranks are too large for it.
    """
    _check_budget(budget, multiple)
    layers = list(layers)
    choices = {layer.path: _choices(layer, curves[layer.path], multiple, cost) for layer in layers}
    hulls = {path: _hull(some) for path, some in choices.items()}
    left = budget * sum(cost(layer, 0) for layer in layers) - sum(hull[0].cost for hull in hulls.values())
    if left < 0:
        raise UserError(
            f"plan.budget {budget} is below what ranks of {multiple} cost; raise it or lower plan.multiple."
        )
    steps = [(after, before, path) for path, hull in hulls.items() for before, after in itertools.pairwise(hull)]
    steps.sort(key=lambda step: (step[0].loss - step[1].loss) / (step[0].cost - step[1].cost))
    now, full = {path: hull[0] for path, hull in hulls.items()}, set()
    for after, before, path in steps:
        if path in full or after.cost - before.cost > left:
            full.add(path)
            continue
        left -= after.cost - before.cost
        now[path] = after

    def better() -> list[tuple[float, str, _Choice]]:
        return [
            (_slope(now[path], one), path, one)
            for path, some in choices.items()
            for one in some
            if 0 < one.cost - now[path].cost <= left and one.loss < now[path].loss
        ]

    while found := better():
        _, path, one = min(found)
        left -= one.cost - now[path].cost
        now[path] = one
    return {path: one.rank for path, one in now.items()}


class _Choice(NamedTuple):
    cost: float
    loss: float
    rank: int


def _choices(layer: LinearInfo, curve: Curve, multiple: int, cost: Cost) -> list[_Choice]:
    """What a layer can be, by rising cost, dense last; nothing that costs more than dense."""
    dense = _Choice(cost(layer, 0), 0.0, 0)
    ranks = range(multiple, min(len(curve), int(layer.break_even) + 1), multiple)
    pairs = [_Choice(cost(layer, rank), float(curve[rank]), rank) for rank in ranks if rank < layer.break_even]
    return [*sorted(pair for pair in pairs if pair.cost < dense.cost), dense]


def _hull(choices: list[_Choice]) -> list[_Choice]:
    """The choices without those that two others beat together."""
    hull: list[_Choice] = []
    for one in choices:
        if hull and one.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], one):
            hull.pop()
        hull.append(one)
    return hull


def _slope(one: _Choice, other: _Choice) -> float:
    return (other.loss - one.loss) / (other.cost - one.cost)


def energy(
    layers: Iterable[LinearInfo], curves: Mapping[str, Curve], budget: float, multiple: int = 1, cost: Cost = parameters
) -> dict[str, int]:
    """The smallest rank of every layer that keeps one common share of its energy, the largest that the budget allows.

    Takes what `least_loss` takes. Where that rank does not pay, the layer stays dense.
    """
    _check_budget(budget, multiple)
    layers = list(layers)

    def ranks(share: float) -> dict[str, int]:
        found = {}
        for layer in layers:
            curve = curves[layer.path]
            rank = int(np.argmax(curve <= (1 - share) * curve[0]))
            rank = max(multiple, -(-rank // multiple) * multiple)
            found[layer.path] = rank if rank < layer.break_even else 0
        return found

    limit, low, high = budget * sum(cost(layer, 0) for layer in layers), 0.0, 1.0
    if sum(cost(layer, rank) for layer, rank in zip(layers, ranks(low).values(), strict=True)) > limit:
        raise UserError(
            f"plan.budget {budget} is below what ranks of {multiple} cost; raise it or lower plan.multiple."
        )
    for _ in range(50):
        middle = (low + high) / 2
        fits = sum(cost(layer, rank) for layer, rank in zip(layers, ranks(middle).values(), strict=True)) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return ranks(low)


METHODS = ("uniform_rank", "uniform_ratio", "by_dimension", "by_kind")
MEASURED = ("energy", "activation", "logits", "sensitivity")
"""Methods that need the dense model and calibration images; the stage `plan` runs them."""


def factorized(layers: Iterable[LinearInfo], keep_dense: Iterable[str] = ()) -> list[LinearInfo]:
    """The layers inside encoder blocks, without those that are kept.

    Raises:
        UserError: a path to keep holds no such layer.
    """
    encoder = [layer for layer in layers if layer.compressible]
    for kept in keep_dense:
        if not any(_inside(layer.path, kept) for layer in encoder):
            raise UserError(f"plan.keep_dense names {kept!r}, where no encoder layer is; --dry_run lists their paths.")
    return [layer for layer in encoder if not any(_inside(layer.path, kept) for kept in keep_dense)]


def make_plan(layers: Iterable[LinearInfo], options: PlanOptions) -> dict[str, LayerPlan]:
    """Plans the float compression of a model from its shapes alone.

    Args:
        layers: all linear layers; only those inside encoder blocks are factorized.
        options: what decides; `keep_dense` are paths of layers or of what holds them ("layers_0") that stay as they
            are. A method of MEASURED gives the uniform ratio of its budget, for the time being.

    Raises:
        UserError: unknown method, a budget that cannot be met, or a path to keep that holds no layer.
    """
    layers, method = list(layers), options.method
    encoder = factorized(layers, options.keep_dense)
    if method in ("uniform_ratio", *MEASURED):
        ranks = uniform_ratio(encoder, options.budget, options.multiple)
    elif method == "uniform_rank":
        ranks = uniform_rank(encoder, options.budget, options.multiple)
    elif method == "by_dimension":
        ranks = by_dimension(encoder, options.budget, options.multiple)
    elif method == "by_kind":
        ranks = by_kind(encoder, {"attention": options.attention_rank, "mlp": options.mlp_rank})
    else:
        raise UserError(f"plan.method is {method!r}; {nearest(method, (*METHODS, *MEASURED))}")
    return of_ranks(layers, ranks)


def of_ranks(layers: Iterable[LinearInfo], ranks: Mapping[str, int]) -> dict[str, LayerPlan]:
    """The plan with pairs of these ranks; a layer without one, or with 0, stays dense."""
    return {
        layer.path: LayerPlan("low_rank", ranks[layer.path]) if ranks.get(layer.path) else LayerPlan()
        for layer in layers
    }


def _inside(path: str, where: str) -> bool:
    return f"{path}/".startswith(f"{where}/")
