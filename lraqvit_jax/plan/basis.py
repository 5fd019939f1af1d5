"""What a basis says of a layer: which inputs its kernel multiplies, and the kernel that it stands for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def rest_of(basis: Int[np.ndarray, " r"], count: int) -> Int[np.ndarray, " rest"]:
    """The numbers below `count` that are not in the basis, rising."""
    return np.setdiff1d(np.arange(count), basis)


def inputs_of(basis: Int[np.ndarray, "..."], count: int) -> Int[np.ndarray, "heads rest"]:
    """Which of `count` inputs are multiplied by the kernel of each head, where those of the basis are copied."""
    return np.stack([rest_of(one, count) for one in np.atleast_2d(basis)])


def spread(kernel: Float[np.ndarray, "rest n"], inputs: Int[np.ndarray, "heads rest"], count: int) -> np.ndarray:
    """The kernel in `count` rows, (count, n): zeros where a head multiplies nothing."""
    parts = np.split(np.asarray(kernel), len(inputs), -1)
    whole = [np.zeros((count, part.shape[1]), part.dtype) for part in parts]
    for part, rows, at in zip(parts, inputs, whole, strict=True):
        at[rows] = part
    return np.concatenate(whole, -1)


def dense_kernel(layer: Mapping[str, Any], basis: str, m: int) -> Float[np.ndarray, "m n"]:
    """The kernel that the parameters of a float layer stand for, whatever its form.

    Args:
        layer: kernel, or u and v and perhaps du and dv, and where it has one the basis.
        basis: of the plan.
        m: inputs.
    """
    whole = plain(layer, basis, m)
    return whole["kernel"] if "kernel" in whole else whole["u"] @ whole["v"]


def plain(layer: Mapping[str, Any], basis: str, m: int) -> dict[str, np.ndarray]:
    """The kernel (m, n), or u (m, r) and v (r, n), with the identity block in its place; arguments as above."""
    if "kernel" in layer:
        kernel = layer["kernel"]
        return {"kernel": _with_block(kernel, layer["basis"], m) if basis else np.asarray(kernel)}
    u, v = (np.asarray(layer[name]) + np.asarray(layer.get(f"d{name}", np.float32(0))) for name in ("u", "v"))
    if basis == "input":
        u = _with_block(u, layer["basis"], m)
    elif basis:
        chosen = layer["basis"] if basis == "output" else np.arange(v.shape[0])
        v = _with_block(v.T, chosen, v.shape[0] + v.shape[1]).T
    return {"u": u, "v": v}


def _with_block(coefficients: Any, basis: Any, count: int) -> np.ndarray:
    """[I; C], its rows in their places, head beside head."""
    bases = np.atleast_2d(basis)
    whole = spread(coefficients, inputs_of(bases, count), count)
    whole[bases.reshape(-1), np.arange(whole.shape[1])] = 1
    return whole
