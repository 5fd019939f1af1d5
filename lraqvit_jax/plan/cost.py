"""What a layer costs at inference: by its shapes and its entry in the plan, or by what was measured."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.records import PACKED, LayerPlan, LinearInfo, Plan


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

    FLOPs are 2 for a multiply-accumulate, the kernel products only, as the paper counts them. Bytes are those of the
    kernels, scales, smoothing vector and bias as they are stored.
    """
    m, n, r = info.features_in, info.features_out, layer.rank
    params, flops, bias = parameters(info, r) + n * info.bias, 2 * macs(info, r), n * info.bias
    if layer.form != "quantized":
        return Cost(params, flops, 4 * params)
    shapes = ((m, r), (r, n)) if r else ((m, n),)
    positions = {"per_tensor": 1, "per_token": info.tokens, "per_token_dynamic": 0}[layer.granularity]
    scales = m * layer.smoothed + len(shapes) * positions * (1 + layer.asymmetric)
    scales += sum(-(-rows // (layer.group or rows)) * columns for rows, columns in shapes)
    stored = sum(packed_rows(rows, layer.kernel_bits) * columns for rows, columns in shapes)
    return Cost(params, flops, stored + 4 * (scales + bias))


def total_cost(plan: Plan, layers: Iterable[LinearInfo]) -> Cost:
    return sum((layer_cost(info, plan[info.path]) for info in layers), Cost())


def packed_rows(rows: int, bits: int) -> int:
    """Bytes in a column of a kernel of integers: rows * bits / 8, rows rounded up to what fills whole bytes."""
    if bits not in PACKED:
        return rows
    word = math.lcm(bits, 8)
    return -(-rows // (word // bits)) * (word // 8)


RankCost = Callable[[LinearInfo, int], float]
"""What a layer costs at a rank, in any unit; 0 is dense."""


def parameters(layer: LinearInfo, rank: int) -> int:
    """Parameters of the kernel, or of the pair."""
    m, n = layer.features_in, layer.features_out
    return rank * (m + n) if rank else m * n


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
        raise UserError("plan.latency is no table of bench layers; measure it again.")

    def cost(layer: LinearInfo, rank: int) -> float:
        ms = times.get((layer.features_in, layer.features_out, layer.tokens))
        if ms is None:
            shape = f"{layer.features_in} x {layer.features_out} with {layer.tokens} rows"
            raise UserError(f"plan.latency has no layer of {shape}; run bench layers for this model and image size.")
        ranks = sorted(rank for rank in ms if rank)
        return float(np.interp(rank, ranks, [float(ms[point]) for point in ranks])) if rank else ms[0]

    return cost
