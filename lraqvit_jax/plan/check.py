"""Refuses a plan that the model cannot follow, or that would save nothing."""

from collections.abc import Iterable

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.quant import ATTENTION, BITS, GRANULARITIES
from lraqvit_jax.plan.records import BASES, FORMS, HEAD_PARTS, LayerPlan, LinearInfo, Plan, by_head, resolved, sibling


def check(plan: Plan, layers: Iterable[LinearInfo]) -> None:
    """Raises UserError if the plan names an unknown layer, leaves one out, or asks for what does not pay."""
    layers = list(layers)
    _check_coupled(plan, layers)
    infos = {layer.path: layer for layer in resolved(layers, plan)}
    for path, layer in plan.items():
        if path not in infos:
            raise UserError(f"The plan names layer {path!r}, which the model does not have; {nearest(path, infos)}")
        check_layer(infos[path], layer)
    missing = sorted(set(infos) - set(plan))
    if missing:
        raise UserError(f"The plan leaves out layer {missing[0]!r}; add it, with form 'dense' to keep it as it is.")


OF_INTEGERS = ("granularity", "clip", "clip_z", "smoothed", "group", "asymmetric")
"""Fields that say how a layer is quantized: one in floats has their defaults."""
COUPLED = (("query", "key"), ("value", "proj"), ("fc1", "fc2"))
"""Layers with one width, which they share."""


def _check_coupled(plan: Plan, layers: Iterable[LinearInfo]) -> None:
    """Raises UserError for widths that layers do not have in common, or that are no smaller than what there is."""
    for info in layers:
        for first, second in COUPLED:
            names = (sibling(info.path, first), sibling(info.path, second))
            width, other = (plan[name].width if name in plan else 0 for name in names)
            if width != other and {*names} <= {*plan}:
                raise UserError(f"Layer {names[0]!r} has width {width} and {names[1]!r} {other}; give both the same.")
        if by_head(info, plan) and info.normed:
            raise UserError(
                f"The plan has {sibling(info.path, 'query')!r}, and a LayerNorm sees this model's queries and keys, "
                f"which only the whole layer gives it; plan {info.path!r}."
            )
        if by_head(info, plan):
            _check_width(sibling(info.path, "query"), plan, info.features_in // info.heads)
        elif info.path.endswith("/fc1"):
            _check_width(info.path, plan, info.features_out // info.gates)
        else:
            planned_by_head = info.path.endswith("/proj") and sibling(info.path, "query") in plan
            _check_width(info.path, plan, info.features_in // (info.heads or 1) if planned_by_head else 1)


def _check_width(path: str, plan: Plan, whole: int) -> None:
    """Raises UserError unless the layer has fewer than so many channels, or all (0). fc2 has what fc1 has."""
    width = plan[path].width if path in plan and not path.endswith("/fc2") else 0
    if width < 0 or (width and width >= whole):
        mend = (
            f"give 1 to {whole - 1}, or 0 for all"
            if whole > 1
            else "give 0, for only heads and MLPs have channels less"
        )
        raise UserError(f"Layer {path!r} has width {width}; {mend}.")


def check_basis(info: LinearInfo, layer: LayerPlan) -> None:
    """Raises UserError for an identity block where there can be none."""
    name = info.path.rpartition("/")[2]
    if layer.basis not in BASES:
        raise UserError(f"Layer {info.path!r} has basis {layer.basis!r}; {nearest(layer.basis, BASES[1:])}")
    if bool(layer.basis) != (layer.form == "pivoted") and layer.form != "quantized":
        raise UserError(
            f"Layer {info.path!r} has form {layer.form!r} and basis {layer.basis!r}; a pivoted layer has one, no other "
            "float form has."
        )
    if layer.basis == "leading" and (name != "fc1" or not layer.rank or info.gated):
        raise UserError(
            f"Layer {info.path!r} has basis 'leading', which only a pair 'fc1' without gates can have; take 'output'."
        )
    if layer.basis and not layer.rank and (name not in ("key", "value") or layer.basis != "input"):
        raise UserError(
            f"Layer {info.path!r} has basis {layer.basis!r} but no rank; only 'key' and 'value' of a head can, and "
            "theirs is 'input'."
        )
    if layer.smoothed_z and (layer.form != "quantized" or not layer.copies_between):
        raise UserError(
            f"Layer {info.path!r} has smoothed_z, which only a quantized pair with an identity block can have: between "
            "other factors it is folded into the first."
        )
    if layer.rank and info.heads and name in (*HEAD_PARTS, "proj") and layer.width:
        raise UserError(f"Layer {info.path!r} has a rank and a width; a layer of a head has a width alone.")


def check_layer(info: LinearInfo, layer: LayerPlan) -> None:
    """Raises UserError for an entry that makes no sense, or a rank at which a pair is no smaller than the kernel."""
    if layer.form not in FORMS:
        raise UserError(f"Layer {info.path!r} has form {layer.form!r}; {nearest(layer.form, FORMS)}")
    if layer.granularity not in GRANULARITIES:
        nearest_name = nearest(layer.granularity, GRANULARITIES)
        raise UserError(f"Layer {info.path!r} has granularity {layer.granularity!r}; {nearest_name}")
    if (layer.bits in BITS) != (layer.form == "quantized") or layer.kernel_bits not in (BITS if layer.bits else (0,)):
        raise UserError(
            f"Layer {info.path!r} has form {layer.form!r} with {layer.bits} bits, {layer.kernel_bits} of them for the "
            "kernel; a quantized layer has 3 to 8 and every other form has 0."
        )
    if layer.form != "quantized" and (
        given := [name for name in OF_INTEGERS if getattr(layer, name) != getattr(LayerPlan(), name)]
    ):
        raise UserError(
            f"Layer {info.path!r} has {given[0]} {getattr(layer, given[0])!r}, which says how a layer is quantized, "
            f"and form {layer.form!r}; leave the field out, or quantize the layer."
        )
    if layer.group < 0:
        raise UserError(f"Layer {info.path!r} has group {layer.group}; give a number of input channels, or 0 for all.")
    if not 0 < layer.clip <= 1 or not 0 <= layer.clip_z <= 1:
        clips = f"clip {layer.clip} and clip_z {layer.clip_z}"
        raise UserError(f"Layer {info.path!r} has {clips}; they are shares of the range, in (0, 1].")
    if layer.attention not in ATTENTION:
        raise UserError(f"Layer {info.path!r} has attention {layer.attention!r}; {nearest(layer.attention, ATTENTION)}")
    if layer.attention != "float" and (layer.form != "quantized" or not info.path.endswith(("/qkv", "/query"))):
        raise UserError(
            f"Layer {info.path!r} has attention {layer.attention!r}; only a quantized 'qkv' or 'query' can have that."
        )
    if layer.form in ("reparam", "low_rank") and not layer.rank:
        raise UserError(f"Layer {info.path!r} has form {layer.form!r} but no rank; give one, or make it dense.")
    if layer.form == "dense" and layer.rank:
        raise UserError(f"Layer {info.path!r} is dense but has rank {layer.rank}; remove the rank or the form.")
    check_basis(info, layer)
    limit = info.break_even_of(layer)
    if layer.rank < 0 or layer.rank >= limit:
        raise UserError(
            f"Layer {info.path!r} ({info.features_in} x {info.features_out}) has rank {layer.rank}; a pair saves "
            f"parameters only at ranks 1 to {_below(limit)}, so lower the rank or leave the layer dense."
        )


def _below(limit: float) -> int:
    return int(limit) - 1 if limit == int(limit) else int(limit)
