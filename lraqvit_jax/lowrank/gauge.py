"""From the form of training to that of deployment: the identity blocks of a plan, and what they fold into neighbours.

    key      k_h = [I; C_h] k_h[basis], and the rows of the basis go into the query
    value    v_h = [I; C_h] v_h[basis], and the rows of the basis go into the projection
    output   a pair's second factor gets the block: `pivot.output_side`
    leading  the same, its outputs in the order [basis, rest], which the next layer's inputs then have
    input    a pair's first factor gets the block: `pivot.input_side`

All in float64, from float32 and back: outputs are the same to the rounding of float32.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from lraqvit_jax.base import trees
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import pivot
from lraqvit_jax.plan.basis import rest_of
from lraqvit_jax.plan.records import LinearInfo, Plan, sibling

PARTNERS = {"key": "query", "value": "proj"}
Layer = dict[str, Any]


def fix(params: Any, plan: Plan, layers: list[LinearInfo]) -> tuple[dict[str, Any], float]:
    """The parameters of the deployed float model.

    Args:
        params: of the model in training forms without a branch, on the host.
        plan: of the deployed model; its bases say what is fixed.
        layers: that the plan has (`records.resolved`).

    Returns:
        the parameters, and the largest coefficient of any block.
    """
    changes: dict[str, Layer] = {}
    largest = 0.0

    def layer_at(path: str) -> Layer:
        return dict(changes.get(path) or trees.get(params, path))

    for info in layers:
        entry = plan[info.path]
        if not entry.basis:
            continue
        layer = layer_at(info.path)
        if not entry.rank:
            partner = sibling(info.path, PARTNERS[info.path.rpartition("/")[2]])
            changes[info.path], changes[partner], size = _by_head(layer, layer_at(partner), info, partner)
        else:
            made = pivot.input_side(_pair(layer)) if entry.basis == "input" else pivot.output_side(_pair(layer))
            block = made.first if entry.basis == "input" else made.second
            size = float(np.max(np.abs(block), initial=0.0))
            layer |= {"u": _float(made.first), "v": _float(made.second)}
            if entry.basis == "leading":
                order = np.concatenate([made.basis, rest_of(made.basis, info.features_out)])
                reader = sibling(info.path, "fc2")
                layer, changes[reader] = _reordered(layer, layer_at(reader), order)
            else:
                layer["basis"] = made.basis.astype(np.int16)
            changes[info.path] = layer
        largest = max(largest, size)
    return trees.replace(params, changes), largest


def _pair(layer: Layer) -> Pair:
    return Pair(np.asarray(layer["u"], np.float64), np.asarray(layer["v"], np.float64))


def _float(matrix: Float[np.ndarray, "m n"]) -> np.ndarray:
    return np.asarray(matrix, np.float32)


def _by_head(layer: Layer, partner: Layer, info: LinearInfo, path: str) -> tuple[Layer, Layer, float]:
    """A key or value layer with identity blocks, its query or projection with what they leave, and the largest
    coefficient."""
    heads = np.split(np.asarray(layer["kernel"], np.float64), info.heads, 1)
    fixed = [pivot.interpolate(kernel) for kernel in heads]
    rows = [kernel[one.basis] for kernel, one in zip(heads, fixed, strict=True)]
    block = np.concatenate([one.coefficients for one in fixed], 1)
    made = {"kernel": _float(block), "basis": np.stack([one.basis for one in fixed]).astype(np.int16)}
    kernel = np.asarray(partner["kernel"], np.float64)
    if path.endswith("/query"):  # q k^T = q (k_basis)^T [I; C]^T
        with_bias = np.concatenate([kernel, np.asarray(partner["bias"], np.float64)[None]])
        parts = np.split(with_bias, info.heads, 1)
        whole = np.concatenate([part @ square.T for part, square in zip(parts, rows, strict=True)], 1)
        new = {"kernel": _float(whole[:-1]), "bias": _float(whole[-1])}
    else:
        parts = np.split(kernel, info.heads, 0)
        new = {"kernel": _float(np.concatenate([square @ part for square, part in zip(rows, parts, strict=True)]))}
    return made, {**partner, **new}, float(np.max(np.abs(block), initial=0.0))


def _reordered(layer: Layer, reader: Layer, order: np.ndarray) -> tuple[Layer, Layer]:
    """A layer whose outputs come in another order, and the one that reads them."""
    first = "u" if "u" in reader else "kernel"
    layer["bias"] = np.asarray(layer["bias"])[order]
    return layer, {**reader, first: np.asarray(reader[first])[order]}
