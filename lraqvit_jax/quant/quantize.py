"""Turns a float model into an int8 one: scales from calibration inputs, smoothing vectors folded where that is free.

A method is a module of this package with `smooth(products, options) -> {key: alpha}`; a product is one matrix product
of the model, keyed "layer/path:x" (kernel, or u of a pair) or "layer/path:z" (v of a pair).
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lraqvit_jax import quant, trees
from lraqvit_jax.errors import UserError, nearest
from lraqvit_jax.plan import LayerPlan, LinearInfo, Plan
from lraqvit_jax.quant import qarray


class Product(NamedTuple):
    """One product to quantize: what it reads, by what it multiplies, and how its inputs will be rounded."""

    x: Float[np.ndarray, "images tokens m"]
    kernel: Float[np.ndarray, "m n"]
    granularity: str
    clip: float


class Quantized(NamedTuple):
    """An int8 model: its parameters, its plan, and the smoothing vector of every smoothed product."""

    params: dict[str, Any]
    plan: dict[str, LayerPlan]
    alphas: dict[str, np.ndarray]


def method(name: str) -> Any:
    """The module of a method; UserError if there is none of that name."""
    modules = [module.name for module in pkgutil.iter_modules(quant.__path__)]
    known = {one for one in modules if hasattr(importlib.import_module(f"{quant.__name__}.{one}"), "smooth")}
    if name not in known:
        raise UserError(f"There is no quantization method {name!r}; {nearest(name, known)}")
    return importlib.import_module(f"{quant.__name__}.{name}")


def products(params: Any, plan: Plan, seen: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Product]:
    """The products of every layer that the plan quantizes.

    Args:
        params: of the float model.
        plan: with form "quantized" where a layer is to be.
        seen: inputs of every product, from `statistics.inputs`.
    """
    found = {}
    for path, layer in plan.items():
        if layer.form != "quantized":
            continue
        weights, values = trees.get(params, path), seen[path]
        names = {"x": "u", "z": "v"} if layer.rank else {"x": "kernel"}
        for name, kernel in names.items():
            found[f"{path}:{name}"] = Product(values[name], np.asarray(weights[kernel]), layer.granularity, layer.clip)
    return found


def quantize(
    params: Any,
    plan: Plan,
    layers: list[LinearInfo],
    seen: Mapping[str, Mapping[str, np.ndarray]],
    name: str,
    options: Mapping[str, Any],
) -> Quantized:
    """Quantizes a float model.

    Args:
        params: nested dict, dense and low-rank layers.
        plan: what to quantize and how.
        layers: the model's linear layers.
        seen: inputs of every product on the calibration images.
        name: of the method, a module of this package.
        options: the method's.
    """
    all_products = products(params, plan, seen)
    alphas = method(name).smooth(all_products, options)
    changes, new_plan = {}, dict(plan)
    for info in layers:
        layer = plan[info.path]
        if layer.form != "quantized":
            continue
        alpha = alphas.get(f"{info.path}:x")
        if alpha is not None and info.norm:
            # A LayerNorm with one consumer takes the division for nothing.
            changes[info.norm] = {key: value / alpha for key, value in trees.get(params, info.norm).items()}
        explicit = alpha is not None and not info.norm
        new_plan[info.path] = LayerPlan(**{**layer.__dict__, "smoothed": explicit})
        pair = {part: all_products[key] for part in "xz" if (key := f"{info.path}:{part}") in all_products}
        weights = _quantize_layer(pair, {part: alphas.get(f"{info.path}:{part}") for part in pair})
        if explicit:
            weights["smooth"] = jnp.asarray(alpha, jnp.float32)
        if info.bias:
            weights["bias"] = trees.get(params, info.path)["bias"]
        changes[info.path] = weights
    return Quantized(trees.replace(params, changes), new_plan, alphas)


def _quantize_layer(pair: Mapping[str, Product], alphas: Mapping[str, np.ndarray | None]) -> dict[str, Any]:
    """Kernels and input scales of one layer. Between two factors, `1/alpha` folds into the scales of the first."""
    weights: dict[str, Any] = {}
    names = {"x": "u", "z": "v"} if len(pair) == 2 else {"x": "kernel"}
    for part, product in pair.items():
        x, kernel, alpha = jnp.asarray(product.x), jnp.asarray(product.kernel, jnp.float32), alphas[part]
        if alpha is not None:
            x, kernel = x / alpha, kernel * alpha[:, None]
        weights[names[part]] = dict(qarray.quantize_kernel(kernel))
        if product.granularity != "per_token_dynamic":
            weights[f"{part}_scale"] = qarray.input_scale(x, product.granularity, product.clip)
        if part == "z" and alpha is not None:
            weights["u"]["scale"] = weights["u"]["scale"] / alpha
    return weights


def error(
    quantized: Quantized, float_params: Any, plan: Plan, seen: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Relative error of each product, `||Q(X/alpha) Q(alpha W) - X W|| / ||X W||`, on the calibration images."""
    errors = {}
    for key, product in products(float_params, plan, seen).items():
        alpha = quantized.alphas.get(key, np.ones(product.x.shape[-1], np.float32))
        x, kernel = jnp.asarray(product.x) / alpha, jnp.asarray(product.kernel) * alpha[:, None]
        scale = qarray.input_scale(x, product.granularity, product.clip)
        rounded = qarray.codes(x, scale) * scale
        exact = jnp.asarray(product.x) @ jnp.asarray(product.kernel)
        got = rounded @ qarray.dequantize_kernel(qarray.quantize_kernel(kernel))
        errors[key] = float(jnp.linalg.norm(got - exact) / jnp.maximum(jnp.linalg.norm(exact), 1e-30))
    return errors
