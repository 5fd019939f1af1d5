"""Turns a float model into an integer one: scales from calibration inputs, smoothing vectors folded where that is free.

A product is one matrix product of the model, keyed "layer/path:x" (kernel, or u of a pair) or "layer/path:z" (v of a
pair). Four choices make a quantized model, each a module of this package, or several, found by name:

* `method`: `smooth(products, options) -> {key: alpha}`, what divides the inputs and multiplies the kernel's rows, and
  where there is a function `shift(products, options) -> {key: c}`, what is taken from the inputs before that;
* `between`: what is put between the factors of a pair and folded into both; see `between`;
* `calibration`: `ranges(x, layer) -> Grid`, the grid of the activations;
* `rounding`: `round_kernel(kernel, rounded, wanted, layer) -> QArray`, given what the product reads once it is rounded.

The second factor is calibrated and rounded on what the quantized first factor puts out.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lraqvit_jax.base import console, trees
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, Plan
from lraqvit_jax.quant import between, qarray


class Product(NamedTuple):
    """One product to quantize: what it reads, by what it multiplies, how, and whether a LayerNorm comes before it."""

    x: Float[np.ndarray, "images tokens m"]
    kernel: Float[np.ndarray, "m n"]
    layer: LayerPlan
    after_norm: bool = False


class Grid(NamedTuple):
    """The grid of a product's inputs: scale, and centre where it is asymmetric; () or (tokens, 1), or an image and
    token each where it is dynamic. Then `clip` is the share of each token's range that was found best."""

    scale: Float[Array, "..."]
    center: Float[Array, "..."] | None = None
    clip: float | None = None


class Quantized(NamedTuple):
    """An integer model: its parameters and plan, the smoothing vector of every smoothed product, and the relative
    error of every product, `||got - wanted|| / ||wanted||`, on the calibration images."""

    params: dict[str, Any]
    plan: dict[str, LayerPlan]
    alphas: dict[str, np.ndarray]
    errors: dict[str, float]


FOLDERS = {"method": "smoothing", "calibration": "ranges", "rounding": "rounding"}
"""Fields of `config.METHOD` that name a module, and the folder of this package that has it."""


def choice(field: str, name: str) -> Any:
    """The module of that name; UserError if there is none."""
    folder = importlib.import_module(f"lraqvit_jax.quant.{FOLDERS[field]}")
    known = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    if name not in known:
        raise UserError(f"There is no quantization {field} {name!r}; {nearest(name, known)}")
    return importlib.import_module(f"{folder.__name__}.{name}")


def check(options: Mapping[str, Any]) -> None:
    """Raises UserError for a name in the options of a method that is none."""
    for field in FOLDERS:
        choice(field, options[field])
    if options["between"] not in between.KINDS:
        raise UserError(f"quant between is {options['between']!r}; {nearest(options['between'], between.KINDS)}")


def products(
    params: Any, plan: Plan, layers: list[LinearInfo], seen: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Product]:
    """The products of every layer that the plan quantizes.

    Args:
        params: of the float model.
        plan: with form "quantized" where a layer is to be.
        layers: the model's linear layers.
        seen: inputs of every product, from `statistics.inputs`.
    """
    found = {}
    for info in layers:
        layer = plan[info.path]
        if layer.form != "quantized":
            continue
        weights, values = trees.get(params, info.path), seen[info.path]
        names = {"x": "u", "z": "v"} if layer.rank else {"x": "kernel"}
        for name, kernel in names.items():
            after_norm = name == "x" and bool(info.norm)
            own = dataclasses.replace(layer, clip=layer.clip_of(name), clip_z=0.0)
            found[f"{info.path}:{name}"] = Product(values[name], np.asarray(weights[kernel]), own, after_norm)
    return found


def quantize(
    params: Any,
    plan: Plan,
    layers: list[LinearInfo],
    seen: Mapping[str, Mapping[str, np.ndarray]],
    options: Mapping[str, Any],
) -> Quantized:
    """Quantizes a float model.

    Args:
        params: nested dict, dense and low-rank layers.
        plan: what to quantize and how.
        layers: the model's linear layers.
        seen: inputs of every product on the calibration images.
        options: fields of `config.METHOD`.
    """
    check(options)
    turned = between.apply(options["between"], products(params, plan, layers, seen))
    method = choice("method", options["method"])
    alphas = method.smooth(turned, options)
    shifts = method.shift(turned, options) if hasattr(method, "shift") else {}
    changes, new_plan = {}, dict(plan)
    errors: dict[str, float] = {}
    for info in console.progress(layers, "quantize", "layer"):
        layer = plan[info.path]
        if layer.form != "quantized":
            continue
        alpha, shift = (found.get(f"{info.path}:x") for found in (alphas, shifts))
        if info.norm and (alpha is not None or shift is not None):
            # A LayerNorm with one consumer takes both for nothing.
            norm, divisor = trees.get(params, info.norm), 1 if alpha is None else alpha
            moved = {"bias": norm["bias"] - (0 if shift is None else shift)}
            changes[info.norm] = {key: value / divisor for key, value in (norm | moved).items()}
        explicit = alpha is not None and not info.norm
        pair = {part: turned[key] for part in "xz" if (key := f"{info.path}:{part}") in turned}
        scaled = {part: alphas.get(f"{info.path}:{part}") for part in pair}
        weights, found, clips = _quantize_layer(pair, scaled, shift, options)
        errors |= {f"{info.path}:{part}": value for part, value in found.items()}
        new_plan[info.path] = dataclasses.replace(layer, smoothed=explicit, **clips)
        if explicit:
            weights["smooth"] = jnp.asarray(alpha, jnp.float32)
        if info.bias:
            weights["bias"] = trees.get(params, info.path)["bias"]
            if shift is not None:
                weights["bias"] = weights["bias"] + shift @ np.asarray(_whole(trees.get(params, info.path)))
        changes[info.path] = weights
    return Quantized(trees.replace(params, changes), new_plan, alphas, errors)


def _whole(weights: Mapping[str, Any]) -> Any:
    return weights["kernel"] if "kernel" in weights else weights["u"] @ weights["v"]


def _quantize_layer(
    pair: Mapping[str, Product],
    alphas: Mapping[str, np.ndarray | None],
    shift: np.ndarray | None,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """Kernels, scales and centres of one layer, the relative error of each product, and what clipping the plan is to
    have. Between two factors, `1/alpha` folds into the scales of the first."""
    weights: dict[str, Any] = {}
    errors: dict[str, float] = {}
    clips: dict[str, Any] = {}
    ranges = choice("calibration", options["calibration"]).ranges
    rounding = choice("rounding", options["rounding"]).round_kernel
    names = {"x": "u", "z": "v"} if len(pair) == 2 else {"x": "kernel"}
    put_out = None
    for part, product in pair.items():
        layer, alpha = product.layer, alphas[part]
        x, kernel = jnp.asarray(product.x), jnp.asarray(product.kernel, jnp.float32)
        x = x - shift if part == "x" and shift is not None else x
        wanted = x @ kernel
        x = x if put_out is None else put_out
        if alpha is not None:
            x, kernel = x / alpha, kernel * alpha[:, None]
        grid = ranges(x, layer)
        rounded = on_grid(x, grid, layer.bits)
        rows = (-1, x.shape[-1])
        array = rounding(kernel, rounded.reshape(rows), wanted.reshape(-1, kernel.shape[1]), layer)
        weights[names[part]] = array.stored()
        if layer.granularity != "per_token_dynamic":
            weights[f"{part}_scale"] = grid.scale
            weights |= {} if grid.center is None else {f"{part}_center": grid.center}
        if part == "z" and alpha is not None:
            weights["u"]["scale"] = weights["u"]["scale"] / alpha
        if grid.clip is not None:
            clips["clip_z" if part == "z" else "clip"] = grid.clip
        put_out = rounded @ array.dequantize()
        errors[part] = float(jnp.linalg.norm(put_out - wanted) / jnp.maximum(jnp.linalg.norm(wanted), 1e-30))
    return weights, errors, clips


@jax.jit(static_argnames="bits")
def on_grid(x: Float[Array, "images tokens m"], grid: Grid, bits: int) -> Float[Array, "images tokens m"]:
    """The inputs as a product on that grid sees them."""
    center = 0 if grid.center is None else grid.center
    return qarray.codes(x - center, grid.scale, bits) * grid.scale + center
