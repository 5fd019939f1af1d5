"""The plan: what form each linear layer takes, and what that costs.

A plan is a plain mapping from layer path to `LayerPlan`. It is written to `plan.json`, may be edited by hand,
travels with every artefact, and is all that a model needs to know its own shape.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.quant import ATTENTION, BITS, GRANULARITIES

FORMS = ("dense", "reparam", "low_rank", "quantized")
PACKED = (4, 6)
"""Widths of kernels that are stored in fewer bytes than entries; 7 bits take a byte, as 8 do."""
MEND = "mend it or delete it to have it written anew"


@dataclasses.dataclass(frozen=True)
class LinearInfo:
    """One linear layer of a model, `y = x @ W + b`.

    Attributes:
        path: parameter path, "/" between the names.
        features_in: m, rows of the kernel.
        features_out: n, columns of the kernel.
        tokens: rows of the input an image gives (1 for a classifier head).
        kind: "attention", "mlp", "embed" (patch embedding, patch merging) or "head". Only the first two are factorized.
        norm: path of the LayerNorm whose output is this layer's only input, or "".
        bias: whether b is there.
        padded: whether zeros come among the inputs behind that norm (Swin fills up its maps to whole windows).
    """

    path: str
    features_in: int
    features_out: int
    tokens: int
    kind: str
    norm: str = ""
    bias: bool = True
    padded: bool = False

    @property
    def takes_shift(self) -> bool:
        """Whether the norm may subtract a vector that the bias makes good: no input comes from elsewhere, as padding
        does, and there is a bias. (A division needs a norm alone: it leaves zeros what they are.)"""
        return bool(self.norm) and self.bias and not self.padded

    @property
    def compressible(self) -> bool:
        """Whether the layer is inside an encoder block (those that the paper covers)."""
        return self.kind in ("attention", "mlp")

    @property
    def break_even(self) -> float:
        """The rank at which a pair has as many parameters as the dense kernel, m n / (m + n)."""
        return self.features_in * self.features_out / (self.features_in + self.features_out)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one linear layer is stored and computed.

    Attributes:
        form: one of FORMS; see `lraqvit_jax.models.linear`.
        rank: rank r of the pair; 0 keeps one dense kernel.
        bits: of the activations of a quantized layer, one of BITS; 0 means float.
        granularity: of the activation scales: "per_tensor", "per_token" (static, by position), "per_token_dynamic".
        clip: share of the observed activation range that the grid spans, in (0, 1].
        smoothed: whether the input is divided by a stored vector before it is quantized.
        weight_bits: of its kernels; 0 is `bits`.
        group: input channels that share a scale of the kernel; 0 is all of them.
        asymmetric: whether the grid of the activations has a zero point.
        clip_z: `clip` of the activations between the factors of a pair; 0 is the same.
        attention: of a layer "qkv": how the products of attention are computed. "float", or on integers, with the
            softmax on a "uniform" grid or on one of powers of sqrt(2), "log_sqrt2".
    """

    form: str = "dense"
    rank: int = 0
    bits: int = 0
    granularity: str = "per_tensor"
    clip: float = 1.0
    smoothed: bool = False
    weight_bits: int = 0
    group: int = 0
    asymmetric: bool = False
    clip_z: float = 0.0
    attention: str = "float"

    @property
    def kernel_bits(self) -> int:
        return self.weight_bits or self.bits

    def clip_of(self, part: str) -> float:
        """The share of the range of "x", what the layer reads, or of "z", what is between its factors."""
        return self.clip_z or self.clip if part == "z" else self.clip


DENSE = LayerPlan()
Plan = Mapping[str, LayerPlan]


def low_rank(plan: Plan, form: str = "low_rank") -> dict[str, LayerPlan]:
    """Returns the float plan with every planned pair in `form` ("low_rank" or "reparam") and the rest dense."""
    return {path: LayerPlan(form=form, rank=layer.rank) if layer.rank else LayerPlan() for path, layer in plan.items()}


def dense(layers: Iterable[LinearInfo]) -> dict[str, LayerPlan]:
    """Returns the plan that leaves every layer as it is."""
    return {layer.path: LayerPlan() for layer in layers}


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
        known = nearest(layer.granularity, GRANULARITIES)
        raise UserError(f"Layer {info.path!r} has granularity {layer.granularity!r}; {known}")
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


def to_json(plan: Plan) -> dict[str, Any]:
    return {path: dataclasses.asdict(layer) for path, layer in plan.items()}


def from_json(data: Mapping[str, Any], where: str = "the plan") -> dict[str, LayerPlan]:
    """Reads a plan back from parsed JSON; UserError where it does not have the shape of one."""
    known = {field.name: type(field.default) for field in dataclasses.fields(LayerPlan)}
    if not isinstance(data, Mapping):
        raise UserError(
            f"{where} is not a JSON object of layer paths; restore it or delete it to have it written anew."
        )
    plan = {}
    for path, fields in data.items():
        if not isinstance(fields, Mapping):
            raise UserError(f"Layer {path!r} in {where} is not an object; give it fields such as form and rank.")
        for name, value in fields.items():
            if name not in known:
                raise UserError(f"Layer {path!r} in {where} has an unknown field {name!r}; {nearest(name, known)}")
            number = known[name] is float and type(value) is int
            if type(value) is not known[name] and not number:
                raise UserError(f"Layer {path!r} in {where} has {name} = {value!r}; it is a {known[name].__name__}.")
        plan[path] = LayerPlan(**fields)
    return plan


def read(path: pathlib.Path) -> dict[str, LayerPlan]:
    """Reads plan.json; UserError if it is no JSON or no plan."""
    return from_json(files.json_object(path, MEND), str(path))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one layer, or a sum of layers, costs at inference: parameter count, FLOPs an image, stored bytes."""

    params: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.flops + other.flops, self.bytes + other.bytes)


def packed_rows(rows: int, bits: int) -> int:
    """Bytes in a column of a kernel of integers: rows * bits / 8, rows rounded up to what fills whole bytes."""
    if bits not in PACKED:
        return rows
    word = math.lcm(bits, 8)
    return -(-rows // (word // bits)) * (word // 8)


def layer_cost(info: LinearInfo, layer: LayerPlan) -> Cost:
    """Cost of one layer in its deployed form (a training form counts as the pair it merges to).

    FLOPs are 2 for a multiply-accumulate, the kernel products only, as the paper counts them. Bytes are those of the
    kernels, scales, smoothing vector and bias as they are stored.
    """
    m, n, r = info.features_in, info.features_out, layer.rank
    weights, bias = r * (m + n) if r else m * n, n * info.bias
    if layer.form != "quantized":
        return Cost(weights + bias, 2 * info.tokens * weights, 4 * (weights + bias))
    shapes = ((m, r), (r, n)) if r else ((m, n),)
    positions = {"per_tensor": 1, "per_token": info.tokens, "per_token_dynamic": 0}[layer.granularity]
    scales = m * layer.smoothed + len(shapes) * positions * (1 + layer.asymmetric)
    scales += sum(-(-rows // (layer.group or rows)) * columns for rows, columns in shapes)
    stored = sum(packed_rows(rows, layer.kernel_bits) * columns for rows, columns in shapes)
    return Cost(weights + bias, 2 * info.tokens * weights, stored + 4 * (scales + bias))


def total_cost(plan: Plan, layers: Iterable[LinearInfo]) -> Cost:
    return sum((layer_cost(info, plan[info.path]) for info in layers), Cost())


def table(plan: Plan, layers: Iterable[LinearInfo], other_params: int) -> str:
    """Formats the plan for people: one line a layer, then the totals against the dense model.

    Args:
        plan: the plan.
        layers: the model's linear layers.
        other_params: parameters outside them (norms, position embedding, class token), stored in float32.
    """
    layers = list(layers)
    width = max(len(info.path) for info in layers)
    lines = [
        f"{'layer':<{width}}  {'form':<9} {'shape':>11} {'rank':>5} {'bits':>4} {'params':>11} {'MFLOPs':>9} {'MB':>8}"
    ]
    for info in layers:
        layer, cost = plan[info.path], layer_cost(info, plan[info.path])
        shape = f"{info.features_in}x{info.features_out}"
        lines.append(
            f"{info.path:<{width}}  {layer.form:<9} {shape:>11} {layer.rank or '-':>5} {_width(layer):>4} "
            f"{cost.params:>11,} {cost.flops / 1e6:>9.2f} {cost.bytes / 1e6:>8.3f}"
        )
    for name, one in (("dense", dense(layers)), ("planned", plan)):
        cost = total_cost(one, layers) + Cost(other_params, 0, 4 * other_params)
        lines.append(
            f"{name:<8} {cost.params / 1e6:.3f} M parameters, {cost.flops / 1e9:.3f} GFLOPs in linear layers, "
            f"{cost.bytes / 1e6:.3f} MB"
        )
    encoder = [info for info in layers if info.compressible]
    share = _kernels(plan, encoder) / _kernels(dense(layers), encoder)
    lines.append(f"The pairs hold {100 * share:.1f} % of the encoder's linear parameters.")
    return "\n".join([*lines, *left_in_float(plan)])


def left_in_float(plan: Plan) -> list[str]:
    """A sentence on what a quantized model computes in float32; none where no layer is quantized."""
    rest = [path for path, layer in plan.items() if layer.form != "quantized"]
    if len(rest) == len(plan):
        return []
    products = [path for path, layer in plan.items() if path.endswith("/qkv") and layer.attention == "float"]
    found = ["LayerNorm, softmax, GELU, sums"]
    found += [f"the products of attention in {len(products)} blocks"] if products else []
    found += [f"the layers {', '.join(rest)}"] if rest else []
    return [f"In float32: {'; '.join(found)}."]


def _width(layer: LayerPlan) -> str:
    """Bits, of the kernel and of the activations where they differ."""
    if not layer.bits or layer.kernel_bits == layer.bits:
        return str(layer.bits or 32)
    return f"{layer.kernel_bits}/{layer.bits}"


def _kernels(plan: Plan, layers: Iterable[LinearInfo]) -> int:
    return sum(layer_cost(info, plan[info.path]).params - info.features_out * info.bias for info in layers)
