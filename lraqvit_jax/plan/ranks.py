"""Ranks for a budget."""

import bisect
import dataclasses
from collections.abc import Iterable, Mapping

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan.check import check_layer
from lraqvit_jax.plan.cost import parameters
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, pivoted


def uniform_ratio(layers: Iterable[LinearInfo], budget: float, multiple: int = 1) -> dict[str, int]:
    """Every layer keeps at most the share `budget` of its kernel's parameters: `r = budget * m n / (m + n)`, or more
    with an identity block.

    Args:
        layers: those to factorize.
        budget: share, in (0, 1).
        multiple: ranks are rounded down to it, for the hardware.

    Returns:
        Rank by layer path.

    Raises:
        UserError: the budget is not a share, or leaves a layer no rank.
    """
    check_budget(budget, multiple)
    ranks = {}
    for layer in layers:
        rank = _largest(layer, budget) // multiple * multiple
        if rank < 1:
            raise UserError(
                f"plan.budget {budget} leaves layer {layer.path!r} no rank at multiples of {multiple}; "
                "raise plan.budget or lower plan.multiple."
            )
        ranks[layer.path] = rank
    return ranks


def _largest(layer: LinearInfo, budget: float) -> int:
    """The largest rank at which a pair has at most the share `budget` of its kernel's parameters."""
    if not layer.pivoted:
        return int(budget * layer.break_even)
    ranks = range(1, int(layer.break_even) + 1)
    return bisect.bisect_right(ranks, budget * parameters(layer, 0), key=lambda rank: parameters(layer, rank))


def check_budget(budget: float, multiple: int) -> None:
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
        of_kind = [layer for layer in layers if layer.kind == kind]
        if rank and of_kind:
            check_layer(max(of_kind, key=lambda layer: layer.break_even), LayerPlan("low_rank", rank))
    return {layer.path: ranks[layer.kind] if ranks[layer.kind] < layer.break_even else 0 for layer in layers}


def by_dimension(layers: Iterable[LinearInfo], budget: float, multiple: int = 1) -> dict[str, int]:
    """The share `budget` of a layer's smaller dimension, `r = budget * min(m, n)`, rounded down to the multiple.

    A layer in which that does not pay (a square one above one half) stays dense, rank 0.

    Raises:
        UserError: the budget is not a share.
    """
    check_budget(budget, multiple)
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
    check_budget(budget, multiple)
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


METHODS = ("uniform_rank", "uniform_ratio", "by_dimension", "by_kind")
MEASURED = ("energy", "activation", "logits", "sensitivity", "products")
"""Methods that need the dense model and calibration images; the stage `plan` runs them."""


def factorized(layers: Iterable[LinearInfo], keep_dense: Iterable[str] = (), pivot: bool = False) -> list[LinearInfo]:
    """The layers inside encoder blocks, without those that are kept; with `pivot`, their pairs have identity blocks.

    Raises:
        UserError: a path to keep holds no such layer, or together they hold all.
    """
    encoder = [layer for layer in layers if layer.compressible]
    for kept in keep_dense:
        if not any(_inside(layer.path, kept) for layer in encoder):
            raise UserError(f"plan.keep_dense names {kept!r}, where no encoder layer is; --dry_run lists their paths.")
    left = [layer for layer in encoder if not any(_inside(layer.path, kept) for kept in keep_dense)]
    if not left:
        raise UserError("plan.keep_dense covers every encoder layer, so that nothing is left to factorize; name fewer.")
    return [dataclasses.replace(layer, pivoted=pivot) for layer in left]


def make_plan(layers: Iterable[LinearInfo], options: PlanOptions) -> dict[str, LayerPlan]:
    """Plans the float compression of a model from its shapes alone.

    Args:
        layers: all linear layers; only those inside encoder blocks are factorized.
        options: what decides; `keep_dense` are paths of layers or of what holds them ("layers_0") that stay as they
            are. A method of MEASURED gives the uniform ratio of its budget, for the time being.

    Raises:
        UserError: unknown method, a budget that cannot be met, a path to keep that holds no layer, or `pivot` where
            that is decided already.
    """
    layers, method = list(layers), options.method
    if options.pivot and method == "products":
        raise UserError(
            "plan.pivot is of no use with plan.method=products, which places identity blocks itself; drop it."
        )
    encoder = factorized(layers, options.keep_dense, options.pivot)
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
    return of_ranks(layers, ranks, options.pivot)


def of_ranks(layers: Iterable[LinearInfo], ranks: Mapping[str, int], pivot: bool = False) -> dict[str, LayerPlan]:
    """The plan with pairs of these ranks, with identity blocks or without; a layer without one, or with 0, stays
    dense."""
    return {layer.path: entry(layer, ranks.get(layer.path, 0), pivot) for layer in layers}


def entry(layer: LinearInfo, rank: int, pivot: bool) -> LayerPlan:
    """A layer's part of the float plan; rank 0 is dense."""
    if not rank:
        return LayerPlan()
    return pivoted(layer, rank) if pivot else LayerPlan("low_rank", rank)


def _inside(path: str, where: str) -> bool:
    return f"{path}/".startswith(f"{where}/")
