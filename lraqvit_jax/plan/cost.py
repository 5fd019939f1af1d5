"""What a layer costs at inference: by its shapes and its entry in the plan, or by what was measured."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.records import PACKED, LayerPlan, LinearInfo, Plan, resolved


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one layer, or a sum of layers, costs at inference: parameter count, FLOPs an image, stored bytes."""

    params: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.flops + other.flops, self.bytes + other.bytes)


def layer_cost(info: LinearInfo, layer: LayerPlan) -> Cost:
    """Cost of one layer in its deployed form (a training form counts as the pair it merges to).

    FLOPs are 2 for a multiply-accumulate, the kernel products only, as the paper counts them; channels that a basis
    copies cost none. Bytes are those of the kernels, scales, smoothing vectors, bias and basis as they are stored.
    `info` is the layer as the plan leaves it (`records.resolved`).
    """
    m, n = info.features_in, info.features_out
    shapes = kernel_shapes(info, layer).values()
    kernels, bias, basis = sum(map(math.prod, shapes)), n * info.bias, 2 * copied(info, layer)
    params, flops = kernels + bias, 2 * info.tokens * kernels
    if layer.form != "quantized":
        return Cost(params, flops, 4 * params + basis)
    positions = {"per_tensor": 1, "per_token": info.tokens, "per_token_dynamic": 0}[layer.granularity]
    scales = m * layer.smoothed + layer.rank * layer.smoothed_z + len(shapes) * positions * (1 + layer.asymmetric)
    scales += sum(-(-rows // (layer.group or rows)) * columns for rows, columns in shapes)
    stored = sum(packed_rows(rows, layer.kernel_bits) * columns for rows, columns in shapes)
    return Cost(params, flops, stored + basis + 4 * (scales + bias))


def kernel_shapes(info: LinearInfo, layer: LayerPlan) -> dict[str, tuple[int, int]]:
    """`factor_shapes` of a layer as the plan leaves it."""
    return factor_shapes(info.features_in, info.features_out, layer, info.heads or 1)


def factor_shapes(m: int, n: int, layer: LayerPlan, heads: int = 1) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's kernels by name, without the identity block that copies channels.

    Args:
        m: inputs.
        n: outputs.
        layer: of the plan.
        heads: that share the outputs.
    """
    r = layer.rank
    if not r:
        return {"kernel": (m - (n // heads if layer.basis else 0), n)}
    return {"u": (m - (r if layer.basis == "input" else 0), r), "v": (r, n - (r if layer.basis in LATER else 0))}


LATER = ("output", "leading")
"""Bases that lie in the second factor."""


def copied(info: LinearInfo, layer: LayerPlan) -> int:
    """How many numbers say which channels are copied, two bytes each."""
    if layer.basis not in ("input", "output"):
        return 0
    return layer.rank or info.features_out


def total_cost(plan: Plan, layers: Iterable[LinearInfo]) -> Cost:
    """Cost of all layers of a plan, given those of the dense model."""
    return sum((layer_cost(info, plan[info.path]) for info in resolved(layers, plan)), Cost())


def packed_rows(rows: int, bits: int) -> int:
    """Bytes in a column of a kernel of integers: rows * bits / 8, rows rounded up to what fills whole bytes."""
    if bits not in PACKED:
        return rows
    word = math.lcm(bits, 8)
    return -(-rows // (word // bits)) * (word // 8)


FormCost = Callable[[LinearInfo, LayerPlan], float]
"""What a layer costs in a form, in any unit."""


def form_cost(unit: str, deployed: Callable[[LinearInfo, LayerPlan], LayerPlan], table: Any = None) -> FormCost:
    """What a layer costs in a float form.

    Args:
        unit: "params", biases included; "macs" of an image; "bytes"; or "latency" in milliseconds of an image.
        deployed: the entry of a layer once it is quantized as it will be, whose bytes are counted.
        table: of `bench layers`, for the latency: a layer takes the time that its multiply-accumulates took there.
    """
    if unit == "latency":
        return _latency_of_macs(table)
    if unit == "bytes":
        return lambda info, layer: layer_cost(info, deployed(info, layer)).bytes
    if unit == "macs":
        return lambda info, layer: layer_cost(info, layer).flops // 2
    return lambda info, layer: layer_cost(info, layer).params


def table(path: str) -> dict[str, Any]:
    """What `bench layers` wrote, of the file plan.latency; UserError where it is none."""
    return files.json_object(files.locate(path), "set plan.latency to what bench layers wrote")


def limit(layers: Iterable[LinearInfo], share: float, cost: FormCost, unit: str) -> float:
    """What the layers may cost: that share of what they cost when dense. Of parameters the share is of the kernels, and
    all biases are allowed for."""
    layers = list(layers)
    dense_cost = sum(cost(info, LayerPlan()) for info in layers)
    biases = sum(info.features_out * info.bias for info in layers) if unit == "params" else 0
    return share * (dense_cost - biases) + biases


def _latency_of_macs(table: Any) -> FormCost:
    """Milliseconds by the table of `bench layers`: of its layers with as many rows, linear between the
    multiply-accumulates that it timed, in proportion below."""
    latency(table)  # whether it is one
    timed: dict[int, list[tuple[float, float]]] = {}
    for row in table["layers"]:
        m, n, tokens = row["features_in"], row["features_out"], row["tokens"]
        points = [(tokens * (int(rank) * (m + n) or m * n), float(ms)) for rank, ms in row["ms"].items()]
        timed.setdefault(tokens, [(0.0, 0.0)]).extend(points)

    def cost(info: LinearInfo, layer: LayerPlan) -> float:
        if info.tokens not in timed:
            raise UserError(
                f"plan.latency has no layer with {info.tokens} rows; run bench layers for this model and image size."
            )
        macs_timed, ms = zip(*sorted(timed[info.tokens]), strict=True)
        return float(np.interp(layer_cost(info, layer).flops / 2, macs_timed, ms))

    return cost


RankCost = Callable[[LinearInfo, int], float]
"""What a layer costs at a rank, in any unit; 0 is dense."""


def parameters(layer: LinearInfo, rank: int) -> int:
    """Parameters of the kernel, or of the pair, with an identity block where `layer` is to have one."""
    m, n = layer.features_in, layer.features_out
    return rank * (m + n - rank * layer.pivoted) if rank else m * n


def macs(layer: LinearInfo, rank: int) -> int:
    """Multiply-accumulates of an image."""
    return layer.tokens * parameters(layer, rank)


def latency(table: Mapping) -> RankCost:
    """Milliseconds of an image, by the table of `bench layers`; linear between the ranks it measured.

    Raises:
        UserError: the table lacks a layer's shape.
    """
    try:
        times = {
            (row["features_in"], row["features_out"], row["tokens"]): {int(rank): ms for rank, ms in row["ms"].items()}
            for row in table["layers"]
        }
        right = all(0 in ms and len(ms) > 1 and all(map(files.number, ms.values())) for ms in times.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        right = False
    if not right:
        raise UserError("plan.latency is not a table of bench layers; measure it again.")

    def cost(layer: LinearInfo, rank: int) -> float:
        ms = times.get((layer.features_in, layer.features_out, layer.tokens))
        if ms is None:
            shape = f"{layer.features_in} x {layer.features_out} with {layer.tokens} rows"
            raise UserError(f"plan.latency has no layer of {shape}; run bench layers for this model and image size.")
        ranks = sorted(rank for rank in ms if rank)
        return float(np.interp(rank, ranks, [float(ms[point]) for point in ranks])) if rank else ms[0]

    return cost
