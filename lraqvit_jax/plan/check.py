"""Refuses a plan that the model cannot follow, or that would save nothing."""

from collections.abc import Iterable

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.quant import ATTENTION, BITS, GRANULARITIES
from lraqvit_jax.plan.records import FORMS, LayerPlan, LinearInfo, Plan


def check(plan: Plan, layers: Iterable[LinearInfo]) -> None:
    """Raises UserError if the plan names an unknown layer, leaves one out, or asks for what does not pay."""
    infos = {layer.path: layer for layer in layers}
    for path, layer in plan.items():
        if path not in infos:
            raise UserError(f"The plan names layer {path!r}, which the model does not have; {nearest(path, infos)}")
        check_layer(infos[path], layer)
    missing = sorted(set(infos) - set(plan))
    if missing:
        raise UserError(f"The plan leaves out layer {missing[0]!r}; add it, with form 'dense' to keep it as it is.")


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
            "kernel; a quantized layer has 4, 6, 7 or 8 and every other form has 0."
        )
    if layer.group < 0:
        raise UserError(f"Layer {info.path!r} has group {layer.group}; give a number of input channels, or 0 for all.")
    if not 0 < layer.clip <= 1 or not 0 <= layer.clip_z <= 1:
        clips = f"clip {layer.clip} and clip_z {layer.clip_z}"
        raise UserError(f"Layer {info.path!r} has {clips}; they are shares of the range, in (0, 1].")
    if layer.attention not in ATTENTION:
        raise UserError(f"Layer {info.path!r} has attention {layer.attention!r}; {nearest(layer.attention, ATTENTION)}")
    if layer.attention != "float" and (layer.form != "quantized" or not info.path.endswith("/qkv")):
        raise UserError(
            f"Layer {info.path!r} has attention {layer.attention!r}; only a quantized layer 'qkv' can have that."
        )
    if layer.form in ("reparam", "low_rank") and not layer.rank:
        raise UserError(f"Layer {info.path!r} has form {layer.form!r} but no rank; give one, or make it dense.")
    if layer.form == "dense" and layer.rank:
        raise UserError(f"Layer {info.path!r} is dense but has rank {layer.rank}; remove the rank or the form.")
    if layer.rank < 0 or layer.rank >= info.break_even:
        raise UserError(
            f"Layer {info.path!r} ({info.features_in} x {info.features_out}) has rank {layer.rank}; a pair saves "
            f"parameters only at ranks 1 to {_below(info.break_even)}, so lower the rank or leave the layer dense."
        )


def _below(limit: float) -> int:
    return int(limit) - 1 if limit == int(limit) else int(limit)
