"""Identity blocks as ONNX nodes.

A file stores what the plan counts. Kernels of heads and first factors, which copy inputs, are spread to all inputs by
nodes of constants, which runtimes compute once, as they load the file: one product is faster than the copies that
would spare a part of it. What a second factor copies is a Concat, and where the order has to be mended a Gather.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from lraqvit_jax.export.graph import Graph
from lraqvit_jax.plan.basis import inputs_of, rest_of
from lraqvit_jax.plan.records import LayerPlan


def spread(graph: Graph, stored: str, weights: Mapping[str, Any], m: int, fill: np.ndarray | None = None) -> str:
    """A kernel (m, n) of a stored one (rest, n), head beside head.

    Args:
        graph: to add to.
        stored: the kernel.
        weights: of the layer, with its basis.
        m: inputs.
        fill: () of the kernel's type: what the rows have that are copied; None is the identity.
    """
    bases = np.atleast_2d(weights["basis"])
    width = bases.shape[1]
    block = np.eye(width, dtype=np.float32) if fill is None else np.full((1, width), fill)
    added = graph.constant(block)
    sizes = graph.constant(np.full(len(bases), width, np.int64))
    heads = graph.add("Split", stored, sizes, outputs=len(bases), axis=1) if len(bases) > 1 else [stored]
    spread_heads = []
    for kernel, basis, inputs in zip(heads, bases, inputs_of(bases, m), strict=True):
        rows = np.empty(m, np.int64)
        rows[inputs] = np.arange(m - width)
        rows[basis] = m - width + (np.arange(width) if fill is None else 0)
        whole = graph.add("Concat", kernel, added, axis=0)
        spread_heads.append(graph.add("Gather", whole, graph.constant(rows), axis=0))
    return graph.add("Concat", *spread_heads, axis=1) if len(bases) > 1 else spread_heads[0]


def copied(graph: Graph, x: str, weights: Mapping[str, Any]) -> str:
    """The inputs that are copied, head beside head: (..., n)."""
    return _columns(graph, x, np.asarray(weights["basis"]).reshape(-1))


def _columns(graph: Graph, x: str, channels: Int[np.ndarray, " n"]) -> str:
    """Channels of rows, in this order: (..., n). Of flat rows, as rows of the transposed, since runtimes copy a row at
    once and a column number by number."""
    order = graph.constant(channels.astype(np.int64))
    if not graph.flat:
        return graph.add("Gather", x, order, axis=2)
    return graph.transpose(graph.add("Gather", graph.transpose(x, 1, 0), order, axis=0), 1, 0)


def joined(
    graph: Graph, z: str, others: str, layer: LayerPlan, weights: Mapping[str, Any], gamma: Any, parts: int, n: int
) -> list[str]:
    """The outputs of a pair whose second factor has the block, in their order, in equal parts.

    Args:
        graph: to add to.
        z: what is between the factors, the outputs of the basis.
        others: the other outputs.
        layer: of the plan.
        weights: of the layer.
        gamma: multiplies the outputs.
        parts: how many there are.
        n: outputs.
    """
    y = graph.add("Concat", z, others, axis=-1)
    order: Int[np.ndarray, " n"] = np.arange(n)
    if layer.basis == "output":
        order[np.concatenate([weights["basis"], rest_of(np.asarray(weights["basis"]), n)])] = np.arange(n)
    bias = np.asarray(weights["bias"] if "bias" in weights else np.zeros(n), np.float32)
    pieces = zip(np.split(order, parts), np.split(bias * (1 if gamma is None else gamma), parts), strict=True)
    factors = [None] * parts if gamma is None else np.split(np.broadcast_to(gamma, (n,)), parts)
    outputs = []
    for (channels, added), factor in zip(pieces, factors, strict=True):
        piece = y if layer.basis == "leading" else _columns(graph, y, channels)
        piece = piece if factor is None else graph.scaled(piece, factor)
        outputs.append(graph.add("Add", piece, graph.constant(added)) if "bias" in weights else piece)
    return outputs
