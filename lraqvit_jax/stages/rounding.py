"""What rounding each kernel alone does to the logits, for a plan that chooses integers with sizes."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lraqvit_jax.base.console import progress
from lraqvit_jax.calibration.changes import Changes
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank.block import Solved
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan.records import HEAD_PARTS, Integers, LayerPlan, sibling
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.rounding import gptq

Kernel = Float[np.ndarray, "m n"]
Losses = dict[str, dict[Integers, float]]
"""Mean square of the logits' change, by path of the layer and integers; 0 for the widest."""


class Measured(NamedTuple):
    """A layer whose kernel is rounded.

    Attributes:
        path: of the layer.
        kernel: float64.
        read: moments of what the layer reads; None where nobody knows.
        change: what another kernel in its place does to the logits.
    """

    path: str
    kernel: Kernel
    read: Moments | None
    change: Callable[[Kernel], float]


def measure(layers: Iterator[Measured], count: int, integers: Sequence[Integers], method: str) -> Losses:
    """What each layer loses in such integers.

    Args:
        layers: which.
        count: how many.
        integers: that a kernel may have.
        method: a module of `quant.rounding`; errors are made good by the moments where it does so on its inputs.
    """
    losses: Losses = {}
    order = sorted(integers, key=lambda one: (-one.bits, one.group))
    last, factor = None, None
    for path, kernel, read, change in progress(layers, "widths", "layer", count):
        if read is not last:  # Query, key and value read the same.
            last, factor = read, None if read is None or method == "nearest" else gptq.Factor.of(read.second)
        of_layer = losses[path] = {order[0]: 0.0}
        for one in order[1:]:
            lost = change(rounded(kernel, factor, one))
            # Fewer bits never count as better: what is measured of a few images is not as sure as that.
            of_layer[one] = max([lost, *(loss for other, loss in of_layer.items() if other.group == one.group)])
    return losses


def of_blocks(solved: Mapping[str, Solved], moments: Mapping[str, Moments], changes: Changes) -> Iterator[Measured]:
    """The layers of blocks with all their channels; query, key and value each.

    Args:
        solved: the blocks.
        moments: of what their layers read in the dense model, by path.
        changes: measures.
    """
    for path, one in solved.items():
        layers, reads = one.narrowed(blocks.full(one.block))
        for name, layer in layers.items():
            dense = sibling(name, "qkv") if name.rpartition("/")[2] in HEAD_PARTS else name
            # A projection reads values in the coordinates of the new kernels, of which no moments are known.
            read = None if name == "attn/proj" else reads.get(name, moments[f"{path}/{dense}"])
            change = functools.partial(_change, changes, one, path, layers, name)
            yield Measured(f"{path}/{name}", layer["kernel"], read, change)


def _change(changes: Changes, solved: Solved, path: str, layers: Mapping[str, Any], name: str, kernel: Kernel) -> float:
    return changes(path, solved.padded({**layers, name: {**layers[name], "kernel": kernel}}))


def of_others(kernels: Mapping[str, Kernel], moments: Mapping[str, Moments], changes: Changes) -> Iterator[Measured]:
    """Layers that are in no block.

    Args:
        kernels: by path.
        moments: of what they read, where it is known.
        changes: measures.
    """
    for path, kernel in kernels.items():
        yield Measured(
            path, np.asarray(kernel, np.float64), moments.get(path), functools.partial(changes.of_kernel, path)
        )


def rounded(kernel: Kernel, factor: gptq.Factor | None, integers: Integers) -> Kernel:
    """What such integers hold of a kernel, by GPTQ where it is known what it reads."""
    layer = LayerPlan("quantized", bits=8, weight_bits=integers.bits, group=integers.group)
    if factor is None:
        single = jnp.asarray(kernel, jnp.float32)
        return np.asarray(qarray.quantize_kernel(single, *integers).dequantize(), np.float64)
    return np.asarray(gptq.solve(kernel, factor, layer).dequantize(), np.float64)
