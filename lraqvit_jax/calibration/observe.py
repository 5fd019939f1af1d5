"""What the layers see: streaming moments, moments layer after layer, and the inputs themselves of a few images.

All run the model on sharded batches and keep only what they return; moments take O(features²) a layer.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from lraqvit_jax.base import trees
from lraqvit_jax.base.console import progress
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.data.pipeline import Batch
from lraqvit_jax.devices import sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.plan.records import LinearInfo

Observe = Callable[[str, jax.Array, jax.Array], Any]


def _observer(model: nn.Module, layers: Iterable[LinearInfo], observe: Observe, mesh: Mesh) -> Callable[..., Any]:
    """Compiles `(params, batch) -> {path: {"x" | "z": observe(name, value, mask)}}`."""
    paths = [layer.path for layer in layers]

    def run(params: Any, batch: Any) -> dict[str, dict[str, Any]]:
        _, seen = model.apply({"params": params}, batch["image"], mutable=["calibration"])
        inputs = {path: trees.get(seen["calibration"], path) for path in paths}
        return {
            path: {name: observe(name, value, batch["mask"]) for name, value in values.items()}
            for path, values in inputs.items()
        }

    return jax.jit(run, out_shardings=sharding.replicated(mesh))


def moments(
    model: nn.Module,
    params: Any,
    layers: Iterable[LinearInfo],
    batches: Iterable[Batch],
    mesh: Mesh,
    gradients: bool = False,
    seed: int = 0,
) -> dict[str, Moments]:
    """The moments of every layer's input, over all tokens of all images: float32 within a batch, float64 across.

    Args:
        model: any float form.
        params: on the mesh.
        layers: which.
        batches: of the calibration images; padding is masked.
        mesh: where it runs.
        gradients: also what the logits make of an error at the layer's output, `Moments.gradient` and the moments that
            are weighted by it; see `_gradients`. Three times the work.
        seed: of the random projections of the logits.
    """
    layers = list(layers)
    totals: dict[str, dict[str, np.ndarray]] = {layer.path: {} for layer in layers}
    images = 0

    def inputs_alone(name: str, value: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return _sums(value, mask) if name == "x" else {}

    with sharding.use(mesh):
        run = _gradients(model, layers, mesh) if gradients else _observer(model, layers, inputs_alone, mesh)
        for index, batch in enumerate(progress(batches, "statistics", "batch")):
            placed = sharding.put_batch(batch, mesh)
            images += int(jnp.sum(placed["mask"]))
            key = (jax.random.fold_in(jax.random.key(seed), index),) if gradients else ()
            for path, values in run(params, placed, *key).items():
                add(totals[path], values["x"])
    moments_of = {}
    for layer in layers:
        sums_of = totals[layer.path]
        felt: dict[str, Any] = {"gradient": sums_of.pop("gradient") / images} if gradients else {}
        weight = max(float(sums_of.pop("weight")), 1e-30) if gradients else 1.0
        felt |= {name: sums_of.pop(name) / weight for name in ("felt_second", "felt_mean") if gradients}
        means = {name: total / (images * layer.tokens) for name, total in sums_of.items()}
        moments_of[layer.path] = Moments(**means, **felt)
    return moments_of


def _sums(x: Float[Array, "batch *tokens m"], mask: Bool[Array, " batch"]) -> dict[str, jax.Array]:
    """Sums over the tokens of the images that are real."""
    return sums(_rows(x, mask))


def sums(x: Float[Array, "rows m"]) -> dict[str, jax.Array]:
    """Sums over rows, in float32."""
    return {"second": gram(x, x), "mean": jnp.sum(x, 0), "magnitude": jnp.sum(jnp.abs(x), 0)}


def _rows(x: Float[Array, "batch *tokens m"], mask: Bool[Array, " batch"]) -> Float[Array, "rows m"]:
    """All tokens below one another, those of padding zero."""
    x = x.astype(jnp.float32) * mask.reshape(-1, *[1] * (x.ndim - 1))
    return x.reshape(-1, x.shape[-1])


def gram(x: Float[Array, "rows m"], y: Float[Array, "rows n"]) -> Float[Array, "m n"]:
    """`xᵀ y`."""
    return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)


def add(totals: dict[str, np.ndarray], values: dict[str, jax.Array]) -> None:
    """Adds the sums of a batch to the totals, in float64."""
    for name, value in values.items():
        totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)


def _gradients(model: nn.Module, layers: Iterable[LinearInfo], mesh: Mesh) -> Callable[..., Any]:
    """Compiles `(params, batch, key) -> {path: {"x": sums}}` with the sum of g gᵀ as "gradient", and `_felt`.

    g is the gradient of `z . logits` at a layer's output, z standard normal without its mean (softmax does not see the
    mean): E[g gᵀ] = Jᵀ J of the centred logits, whatever the labels, from one backward pass. An error e of the output
    moves the logits by J e, so `eᵀ E[g gᵀ] e` is the square of that, for one token alone.
    """
    paths = {layer.path for layer in layers}

    def added(extra: dict[str, jax.Array] | None, shapes: dict[str, Any]) -> Callable[..., Any]:
        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            y, path = call(*args, **kwargs), "/".join(context.module.path)
            if path not in paths or context.method_name != "__call__":
                return y
            shapes[path] = jax.ShapeDtypeStruct(y.shape, y.dtype)
            return y if extra is None else y + extra[path]

        return intercept

    def run(params: Any, batch: Any, key: jax.Array) -> dict[str, dict[str, Any]]:
        images, mask = batch["image"], batch["mask"]
        shapes: dict[str, Any] = {}
        with nn.intercept_methods(added(None, shapes)):
            jax.eval_shape(model.apply, {"params": params}, images)

        def projected(extra: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            with nn.intercept_methods(added(extra, {})):
                logits, seen = model.apply({"params": params}, images, mutable=["calibration"])
            z = jax.random.normal(key, logits.shape)
            z -= jnp.mean(z, -1, keepdims=True)
            return jnp.sum(logits * z), seen["calibration"]

        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        slopes, seen = jax.grad(projected, has_aux=True)(nothing)
        sums = {}
        for path in paths:
            g, x = _rows(slopes[path], mask), trees.get(seen, path)["x"]
            sums[path] = {"x": {**_sums(x, mask), "gradient": gram(g, g), **felt(_rows(x, mask), _at_queries(g, path))}}
        return sums

    return jax.jit(run, out_shardings=sharding.replicated(mesh))


def _at_queries(g: Float[Array, "rows n"], path: str) -> Float[Array, "rows _"]:
    """The gradient at the queries, of a "qkv"; else all of it."""
    return g[:, : g.shape[1] // 3] if path.endswith("/qkv") else g


def felt(x: Float[Array, "rows m"], g: Float[Array, "rows n"]) -> dict[str, jax.Array]:
    """Sums over rows by the square of their gradient, and the sum of that."""
    weights = jnp.sum(jnp.square(g), 1, keepdims=True)
    return {"felt_second": gram(x * weights, x), "felt_mean": jnp.sum(x * weights, 0), "weight": jnp.sum(weights)}


def sequential(
    model: nn.Module,
    params: Any,
    layers: Iterable[LinearInfo],
    batches: Iterable[Batch],
    mesh: Mesh,
    solve: Callable[[str, Moments], dict[str, np.ndarray]],
) -> None:
    """Replaces layer after layer, each on the moments of what it reads behind those already replaced.

    The tokens between two blocks are held for all images, in both models: images * tokens * features * 8 bytes.

    Args:
        model: dense.
        params: on the mesh.
        layers: those to replace.
        batches: of the calibration images.
        mesh: where it runs.
        solve: `(path, moments with cross) -> {kernel, bias}`, the layer as it is from then on.
    """
    whole, rows = sharding.replicated(mesh), sharding.over_batch(mesh)
    infos = {layer.path: layer for layer in layers}
    start = jax.jit(lambda params, images: model.apply({"params": params}, images, method="embed"), out_shardings=rows)
    masks, dense = [], []
    with sharding.use(mesh):
        for batch in batches:
            placed = sharding.put_batch(batch, mesh)
            masks.append(placed["mask"])
            dense.append(start(params, placed["image"]))
        compressed, images = list(dense), sum(int(jnp.sum(mask)) for mask in masks)
        chain: Any = model.chain()
        for where, module in progress(chain, "sequential", "block"):
            before = after = trees.get(params, where)
            for path in [path for path in infos if path.startswith(f"{where}/")]:
                name = path.removeprefix(f"{where}/")
                totals: dict[str, np.ndarray] = {}
                for x, t, mask in zip(compressed, dense, masks, strict=True):
                    add(totals, _cross_sums(module, name, whole)(after, before, x, t, mask))
                tokens = images * infos[path].tokens
                layer = solve(path, Moments(**{key: total / tokens for key, total in totals.items()}))
                after = trees.replace(after, {name: jax.device_put(layer, whole)})
            step = _apply(module, rows)
            compressed, dense = [step(after, x) for x in compressed], [step(before, t) for t in dense]


@functools.lru_cache(maxsize=32)
def _apply(module: nn.Module, where: Any) -> Any:
    return jax.jit(lambda params, x: module.apply({"params": params}, x), out_shardings=where)


@functools.lru_cache(maxsize=256)
def _cross_sums(module: nn.Module, path: str, where: Any) -> Any:
    """Compiles the sums for one layer of a block; blocks that are equal but for their parameters share it."""

    def read(params: Any, x: jax.Array) -> jax.Array:
        _, seen = module.apply({"params": params}, x, mutable=["calibration"])
        return trees.get(seen["calibration"], path)["x"]

    def run(after: Any, before: Any, x: jax.Array, t: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        x, t = read(after, x), _rows(read(before, t), mask)
        return {**_sums(x, mask), "cross": gram(_rows(x, mask), t), "target_mean": jnp.sum(t, 0)}

    return jax.jit(run, out_shardings=where)


def inputs(
    model: nn.Module, params: Any, layers: Iterable[LinearInfo], batches: Iterable[Batch], mesh: Mesh
) -> dict[str, dict[str, Float[np.ndarray, "images tokens m"]]]:
    """What every product of every layer reads: "x", and "z" between the factors of a pair.

    Memory is images * tokens * features * 4 bytes a layer: for the few images of a quantization calibration.
    A head, which reads one vector an image, gets a token axis of 1.
    """

    def keep(name: str, value: jax.Array, mask: jax.Array) -> jax.Array:
        del name, mask
        return value.astype(jnp.float32)

    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    with sharding.use(mesh):
        run = _observer(model, layers, keep, mesh)
        for batch in progress(batches, "inputs", "batch"):
            placed = sharding.put_batch(batch, mesh)
            real = np.flatnonzero(np.asarray(jax.device_put(placed["mask"], sharding.replicated(mesh))))
            for path, values in run(params, placed).items():
                for name, value in values.items():
                    rows = np.asarray(value)[real]
                    parts.setdefault(path, {}).setdefault(name, []).append(rows.reshape(len(rows), -1, rows.shape[-1]))
    return {path: {name: np.concatenate(rows) for name, rows in values.items()} for path, values in parts.items()}
