"""What a layer costs at inference, by its shapes and its entry in the plan."""

import dataclasses
import math
from collections.abc import Iterable

from lraqvit_jax.plan.records import PACKED, LayerPlan, LinearInfo, Plan


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
