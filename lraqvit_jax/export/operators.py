"""Operators that older opsets lack, spelled out: Attention (23), Gelu (20), axes of a mean or maximum as an input (18).
int4, and scales of groups (21), have nothing to stand in for them."""

import math
from typing import Any

import numpy as np

from lraqvit_jax.export.graph import Graph

ATTENTION, BLOCKS, GELU, AXES = 23, 21, 20, 18
"""The opsets that have them."""


def attention(
    graph: Graph,
    parts: tuple[str, str, str],
    heads: int,
    widths: tuple[int, int],
    scale: float,
    bias: str,
    queries: int,
    tokens: int,
) -> str:
    """softmax(scale Q K^T + bias) V, head by head.

    Args:
        graph: to add to.
        parts: query (batch, queries, wide), key (batch, tokens, wide), value (batch, tokens, out).
        heads: how many.
        widths: wide and out.
        scale: of the products.
        bias: to be added, that broadcasts to (batch, heads, queries, tokens); "" is none.
        queries: of an image.
        tokens: of an image.

    Returns:
        (batch, queries, out).
    """
    wide, out = widths
    if graph.opset >= ATTENTION:
        fields: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads}
        if not math.isclose(scale, (wide // heads) ** -0.5):
            fields["scale"] = scale
        return graph.add("Attention", *parts, *([bias] if bias else []), **fields)
    query, key, value = parts
    query, key, value = (
        graph.transpose(graph.shape(part, -1, count, heads, width // heads), *axes)
        for part, count, width, axes in (
            (graph.scaled(query, scale), queries, wide, (0, 2, 1, 3)),
            (key, tokens, wide, (0, 2, 3, 1)),
            (value, tokens, out, (0, 2, 1, 3)),
        )
    )
    scores = graph.add("MatMul", query, key)
    scores = graph.add("Add", scores, bias) if bias else scores
    y = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    return graph.shape(graph.transpose(y, 0, 2, 1, 3), -1, queries, out)


def gelu(graph: Graph, x: str, approximate: bool) -> str:
    """x Φ(x), or its approximation by tanh; in the nodes and their order that runtimes know for one."""
    if graph.opset >= GELU:
        return graph.add("Gelu", x, approximate="tanh" if approximate else "none")
    one, half = graph.constant(np.float32(1)), graph.constant(np.float32(0.5))
    if not approximate:
        erf = graph.add("Erf", graph.add("Div", x, graph.constant(np.float32(math.sqrt(2)))))
        return graph.add("Mul", graph.add("Mul", x, graph.add("Add", erf, one)), half)
    cube = graph.scaled(graph.add("Pow", x, graph.constant(np.float32(3))), 0.044715)
    tanh = graph.add("Tanh", graph.scaled(graph.add("Add", x, cube), math.sqrt(2 / math.pi)))
    return graph.add("Mul", graph.add("Mul", x, graph.add("Add", tanh, one)), half)


def over_row(graph: Graph, kind: str, x: str) -> str:
    """ReduceMax or ReduceMin of each row: (rows, m) -> (rows, 1)."""
    if graph.opset >= AXES:
        return graph.add(kind, x, graph.constant(np.asarray([-1], np.int64)))
    return graph.add(kind, x, axes=[-1])


def mean(graph: Graph, x: str) -> str:
    """Over the tokens: (batch, tokens, width) -> (batch, width)."""
    if graph.opset >= AXES:
        return graph.add("ReduceMean", x, graph.constant(np.asarray([1], np.int64)), keepdims=0)
    return graph.add("ReduceMean", x, axes=[1], keepdims=0)
