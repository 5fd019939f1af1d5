"""How much the logits change when one block does: forward passes that start from that block's remembered input."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from lraqvit_jax.base import trees
from lraqvit_jax.data.pipeline import Batch
from lraqvit_jax.devices import sharding
from lraqvit_jax.devices.sharding import Mesh


class Changes:
    """Measures on a few images, in the dense model's shapes. It holds them, and what every block reads of them: images
    * tokens * features * 4 bytes a block."""

    def __init__(self, model: nn.Module, params: Any, batches: Iterable[Batch], mesh: Mesh) -> None:
        """Runs the model once.

        Args:
            model: dense.
            params: of it, on the mesh.
            batches: of the images; padding is masked.
            mesh: where it runs.
        """
        unbound: Any = model
        self._params, self._mesh, self._chain = params, mesh, unbound.chain()
        self._classify, self._embed = _call(model, "classify"), _call(model, "embed")
        self.paths = [path for path, _ in self._chain]
        with sharding.use(mesh):
            placed = [sharding.put_batch(batch, mesh) for batch in batches]
            self._masks = [batch["mask"] for batch in placed]
            self._pixels = [batch["image"] for batch in placed]
            self._inputs = [[self._embed(params, pixels) for pixels in self._pixels]]
            for path, module in self._chain:
                step = _call(module)
                self._inputs.append([step(trees.get(params, path), x) for x in self._inputs[-1]])
            self._logits = [self._classify(params, x) for x in self._inputs[-1]]
            self.images = sum(int(jnp.sum(mask)) for mask in self._masks)

    def __call__(self, where: str, layers: Mapping[str, Any]) -> float:
        """Mean over the images of the square of the centred logits' change.

        Args:
            where: path of the block.
            layers: of it, in the dense shapes, by their paths in it.
        """
        first = self.paths.index(where)
        old = trees.get(self._params, where)
        like = {path: jax.tree.map(lambda leaf: leaf.sharding, trees.get(old, path)) for path in layers}
        new = {path: jax.tree.map(jax.device_put, dict(layer), like[path]) for path, layer in layers.items()}
        changed, total = trees.replace(old, new), 0.0
        with sharding.use(self._mesh):
            for x, logits, mask in zip(self._inputs[first], self._logits, self._masks, strict=True):
                y = _call(self._chain[first][1])(changed, x)
                total += self._lost(self._params, y, first + 1, logits, mask)
        return total / self.images

    def of_kernel(self, path: str, kernel: Float[np.ndarray, "m n"]) -> float:
        """The same, of another kernel at the path of a layer anywhere in the model."""
        old, total = trees.get(self._params, path), 0.0
        new = jax.device_put(kernel.astype(np.float32), old["kernel"].sharding)
        params = trees.replace(self._params, {path: {**old, "kernel": new}})
        with sharding.use(self._mesh):
            for pixels, logits, mask in zip(self._pixels, self._logits, self._masks, strict=True):
                total += self._lost(params, self._embed(params, pixels), 0, logits, mask)
        return total / self.images

    def _lost(self, params: Any, x: Array, first: int, logits: Array, mask: Array) -> float:
        """The sum over a batch of what a model loses that goes on with what its block number `first` reads."""
        for path, module in self._chain[first:]:
            x = _call(module)(trees.get(params, path), x)
        return float(squared_change(self._classify(params, x), logits, mask))


@functools.lru_cache(maxsize=64)
def _call(module: nn.Module, method: str = "__call__") -> Any:
    return jax.jit(lambda params, x: module.apply({"params": params}, x, method=method))


@jax.jit
def squared_change(
    logits: Float[Array, "batch classes"], dense: Float[Array, "batch classes"], mask: Bool[Array, " batch"]
) -> Float[Array, ""]:
    """Sum over the images that are real of the square of the centred logits' change."""
    moved = logits - dense
    moved -= jnp.mean(moved, -1, keepdims=True)
    return jnp.sum(jnp.where(mask[:, None], jnp.square(moved), 0))
