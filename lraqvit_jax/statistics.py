"""What the layers see: streaming second moments, and the inputs themselves of a few images.

Both run the model on sharded batches and keep only what they return; second moments take O(features²) a layer.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Float

from lraqvit_jax import sharding, trees
from lraqvit_jax.data.pipeline import Batch
from lraqvit_jax.plan import LinearInfo

Observe = Callable[[str, str, jax.Array, jax.Array], jax.Array]


def _observer(model: nn.Module, layers: Iterable[LinearInfo], observe: Observe, mesh: Mesh) -> Callable[..., Any]:
    """Compiles `(params, batch) -> {(path, "x" | "z"): observe(path, name, value, mask)}`."""
    paths = [layer.path for layer in layers]

    def run(params: Any, batch: Any) -> dict[str, dict[str, jax.Array]]:
        _, seen = model.apply({"params": params}, batch["image"], mutable=["calibration"])
        found = {path: trees.get(seen["calibration"], path) for path in paths}
        return {
            path: {name: observe(path, name, value, batch["mask"]) for name, value in values.items()}
            for path, values in found.items()
        }

    return jax.jit(run, out_shardings=sharding.replicated(mesh))


def second_moments(
    model: nn.Module, params: Any, layers: Iterable[LinearInfo], batches: Iterable[Batch], mesh: Mesh
) -> dict[str, Float[np.ndarray, "m m"]]:
    """`E[x xᵀ]` of every layer's input, over all tokens of all images, in float64.

    Args:
        model: any float form.
        params: on the mesh.
        layers: which.
        batches: of the calibration images; padding is masked.
        mesh: where it runs.
    """

    def moment(path: str, name: str, value: jax.Array, mask: jax.Array) -> jax.Array:
        del path, name
        x = value.astype(jnp.float32) * mask.reshape(-1, *[1] * (value.ndim - 1))
        x = x.reshape(-1, x.shape[-1])
        return jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)

    layers = list(layers)
    totals: dict[str, np.ndarray] = {}
    images = 0
    with sharding.use(mesh):
        run = _observer(model, layers, moment, mesh)
        for batch in batches:
            placed = sharding.put_batch(batch, mesh)
            images += int(jnp.sum(placed["mask"]))
            for path, values in run(params, placed).items():
                totals[path] = totals.get(path, 0) + np.asarray(values["x"], np.float64)
    return {layer.path: totals[layer.path] / (images * layer.tokens) for layer in layers}


def inputs(
    model: nn.Module, params: Any, layers: Iterable[LinearInfo], batches: Iterable[Batch], mesh: Mesh
) -> dict[str, dict[str, Float[np.ndarray, "images tokens m"]]]:
    """What every product of every layer reads: "x", and "z" between the factors of a pair.

    Memory is images * tokens * features * 4 bytes a layer: for the few images of a quantization calibration.
    A head, which reads one vector an image, gets a token axis of 1.
    """

    def keep(path: str, name: str, value: jax.Array, mask: jax.Array) -> jax.Array:
        del path, name, mask
        return value.astype(jnp.float32)

    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    with sharding.use(mesh):
        run = _observer(model, layers, keep, mesh)
        for batch in batches:
            placed = sharding.put_batch(batch, mesh)
            real = np.flatnonzero(np.asarray(jax.device_put(placed["mask"], sharding.replicated(mesh))))
            for path, values in run(params, placed).items():
                for name, value in values.items():
                    rows = np.asarray(value)[real]
                    parts.setdefault(path, {}).setdefault(name, []).append(rows.reshape(len(rows), -1, rows.shape[-1]))
    return {path: {name: np.concatenate(rows) for name, rows in values.items()} for path, values in parts.items()}
