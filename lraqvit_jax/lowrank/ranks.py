"""Ranks for a budget."""

from collections.abc import Iterable, Mapping

from lraqvit_jax.errors import UserError, nearest
from lraqvit_jax.plan import LayerPlan, LinearInfo, check_layer


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


METHODS = ("uniform_ratio", "by_dimension", "by_kind")


def make_plan(layers: Iterable[LinearInfo], options: Mapping) -> dict[str, LayerPlan]:
    """Plans the float compression of a model.

    Args:
        layers: all linear layers; only those inside encoder blocks are factorized.
        options: method (of METHODS), budget, multiple, attention_rank, mlp_rank, and keep_dense, paths of layers or
            of what holds them ("layers_0") that stay as they are.

    Raises:
        UserError: unknown method, a budget that cannot be met, or a path to keep that holds no layer.
    """
    layers = list(layers)
    encoder, keep_dense = [layer for layer in layers if layer.compressible], options.get("keep_dense", ())
    for kept in keep_dense:
        if not any(_inside(layer.path, kept) for layer in encoder):
            raise UserError(f"plan.keep_dense names {kept!r}, where no encoder layer is; --dry_run lists their paths.")
    encoder = [
        layer for layer in encoder if not any(_inside(layer.path, kept) for kept in options.get("keep_dense", ()))
    ]
    if options["method"] == "uniform_ratio":
        ranks = uniform_ratio(encoder, options["budget"], options["multiple"])
    elif options["method"] == "by_dimension":
        ranks = by_dimension(encoder, options["budget"], options["multiple"])
    elif options["method"] == "by_kind":
        ranks = by_kind(encoder, {"attention": options["attention_rank"], "mlp": options["mlp_rank"]})
    else:
        raise UserError(f"plan.method is {options['method']!r}; {nearest(options['method'], METHODS)}")
    return {
        layer.path: LayerPlan("low_rank", ranks[layer.path]) if ranks.get(layer.path) else LayerPlan()
        for layer in layers
    }


def _inside(path: str, where: str) -> bool:
    return f"{path}/".startswith(f"{where}/")
