"""Turns a float model into an integer one: scales from calibration inputs, smoothing vectors folded where that is free.

A product is one matrix product of the model, keyed "layer/path:x" (kernel, or u of a pair) or "layer/path:z" (v of a
pair). Four choices make a quantized model; `Steps` are the functions that they name, each of a module found by name:

* `method`, of `smoothing/`: `smooth(products, options) -> {key: alpha}`, what divides the inputs and multiplies the
  kernel's rows, and where there is a function `shift(products, options) -> {key: c}`, what is taken from the inputs
  before that, of products that take a shift;
* `between`: what is put between the factors of a pair and folded into both; see `between`;
* `calibration`, of `ranges/`: `ranges(x, layer) -> Grid`, the grid of the activations;
* `rounding`, of `rounding/`: `round_kernel(kernel, rounded, target, layer) -> QArray`, given what the product reads
  once it is rounded, and what it is to put out.

The second factor is calibrated and rounded on what the quantized first factor puts out.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lraqvit_jax.base import console, trees
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options import records
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.plan.basis import dense_kernel, inputs_of, rest_of, spread
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, Plan
from lraqvit_jax.quant import between, qarray


class Product(NamedTuple):
    """One product to quantize: what it reads, by what it multiplies, how.

    Attributes:
        x: the inputs on the calibration images.
        kernel: what multiplies them.
        layer: of the plan, `clip` that of this product.
        after_norm: whether a LayerNorm comes before it and takes a division of the inputs for nothing.
        takes_shift: whether that LayerNorm and the layer's bias take a shift of the inputs as well.
        inputs: which of x the kernel of each head multiplies, where others are copied: the kernel has zeros for those,
            and nothing is stored of them. None is all.
    """

    x: Float[np.ndarray, "images tokens m"]
    kernel: Float[np.ndarray, "m n"]
    layer: LayerPlan
    after_norm: bool = False
    takes_shift: bool = False
    inputs: Int[np.ndarray, "heads k"] | None = None

    def rounded(
        self,
        kernel: Float[Array, "m n"],
        rows: Float[Array, "rows m"],
        target: Float[Array, "rows n"],
        round_kernel: Any,
    ) -> tuple[qarray.QArray, Float[Array, "rows n"]]:
        """The kernel on integers, that of each head by itself, and what it puts out.

        Args:
            kernel: float, of all inputs.
            rows: the inputs, rounded already.
            target: what it is to put out.
            round_kernel: of a module of `rounding/`.
        """
        if self.inputs is None:
            array = round_kernel(kernel, rows, target, self.layer)
            return array, _put_out(rows, array)
        parts, outputs = [], []
        for of_head in _by_head(kernel, rows, target, self.inputs):
            parts.append(round_kernel(*of_head, self.layer))
            outputs.append(_put_out(of_head[1], parts[-1]))
        arrays, joined = _joined([part.stored() for part in parts], outputs)
        return dataclasses.replace(parts[0], **arrays), joined


Products = Mapping[str, Product]
Vectors = Mapping[str, Float[np.ndarray, " m"]]
"""By product: what divides its inputs, or is taken from them."""


class Grid(NamedTuple):
    """The grid of a product's inputs: scale, and centre where it is asymmetric; () or (tokens, 1), or an image and
    token each where it is dynamic. Then `clip` is the share of each token's range that was found best."""

    scale: Float[Array, "..."]
    center: Float[Array, "..."] | None = None
    clip: float | None = None


class Steps(NamedTuple):
    """What makes a quantized model; see above."""

    smooth: Callable[[Products, Quantizer], Vectors]
    shift: Callable[[Products, Quantizer], Vectors]
    ranges: Callable[[Array, LayerPlan], Grid]
    round_kernel: Callable[[Array, Array, Array, LayerPlan], qarray.QArray]


class Quantized(NamedTuple):
    """An integer model: its parameters and plan, the smoothing vector of every smoothed product, and the relative
    error of every product, `||output - target|| / ||target||`, on the calibration images."""

    params: dict[str, Any]
    plan: dict[str, LayerPlan]
    alphas: dict[str, np.ndarray]
    errors: dict[str, float]


FOLDERS = {"method": "smoothing", "calibration": "ranges", "rounding": "rounding"}
"""Fields of a `Quantizer` that name a module, and the folder of this package that has it."""


def choice(field: str, name: str) -> Any:
    """The module of that name; UserError if there is none."""
    folder = importlib.import_module(f"lraqvit_jax.quant.{FOLDERS[field]}")
    names = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    if name not in names:
        raise UserError(f"There is no quantization {field} {name!r}; {nearest(name, names)}")
    return importlib.import_module(f"{folder.__name__}.{name}")


def check(options: Quantizer) -> None:
    """Raises UserError for a name in the options that is none, or a number out of its bounds."""
    for field in FOLDERS:
        choice(field, getattr(options, field))
    records.parse(Quantizer, records.to_dict(options), "quant.")


def steps_of(options: Quantizer) -> Steps:
    """The functions that a quantizer's fields name."""
    smoothing = choice("method", options.method)
    return Steps(
        smoothing.smooth,
        getattr(smoothing, "shift", lambda products, options: {}),
        choice("calibration", options.calibration).ranges,
        choice("rounding", options.rounding).round_kernel,
    )


def kernel_names(layer: LayerPlan) -> dict[str, str]:
    """The kernel of each product of a layer."""
    return {"x": "u", "z": "v"} if layer.rank else {"x": "kernel"}


def products(
    params: Any, plan: Plan, layers: list[LinearInfo], seen: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Product]:
    """The products of every layer that the plan quantizes.

    Args:
        params: of the float model.
        plan: with form "quantized" where a layer is to be.
        layers: those that the plan has (`records.resolved`).
        seen: inputs of every product, from `calibration.observe.inputs`.
    """
    by_key = {}
    for info in layers:
        layer = plan[info.path]
        if layer.form == "quantized":
            weights = trees.get(params, info.path)
            for part, kernel in kernel_names(layer).items():
                x, first, stored = seen[info.path][part], part == "x", np.asarray(weights[kernel])
                inputs = inputs_of(weights["basis"], info.features_in) if first and layer.basis == "input" else None
                stored = stored if inputs is None else spread(stored, inputs, info.features_in)
                product_plan = dataclasses.replace(layer, clip=layer.clip_of(part), clip_z=0.0)
                by_key[f"{info.path}:{part}"] = Product(
                    x, stored, product_plan, first and bool(info.norm), first and info.takes_shift, inputs
                )
    return by_key


def quantize(
    params: Any,
    plan: Plan,
    layers: list[LinearInfo],
    seen: Mapping[str, Mapping[str, np.ndarray]],
    options: Quantizer,
    steps: Steps | None = None,
) -> Quantized:
    """Quantizes a float model.

    Args:
        params: nested dict, dense and low-rank layers.
        plan: what to quantize and how.
        layers: those that the plan has (`records.resolved`).
        seen: inputs of every product on the calibration images.
        options: of the method.
        steps: other functions than those that the options name.

    Raises:
        UserError: a name in the options that is none.
    """
    check(options)
    steps = steps or steps_of(options)
    turned = between.apply(options.between, products(params, plan, layers, seen))
    alphas, shifts = dict(steps.smooth(turned, options)), steps.shift(turned, options)
    changes, new_plan, errors = {}, dict(plan), dict[str, float]()
    for info in console.progress(layers, "quantize", "layer"):
        if plan[info.path].form != "quantized":
            continue
        keys = {part: f"{info.path}:{part}" for part in kernel_names(plan[info.path])}
        alpha, shift = alphas.get(keys["x"]), shifts.get(keys["x"])
        basis = {name: value for name, value in trees.get(params, info.path).items() if name == "basis"}
        layer = _quantize_layer(
            {part: turned[key] for part, key in keys.items()},
            {part: alphas.get(key) for part, key in keys.items()},
            shift,
            steps,
        )
        errors |= {keys[part]: error for part, error in layer.errors.items()}
        divides = alpha is not None and not info.norm
        new_plan[info.path] = dataclasses.replace(
            plan[info.path], smoothed=divides, smoothed_z="z_smooth" in layer.weights, **layer.clips
        )
        changes[info.path] = (
            basis | layer.weights | _bias(trees.get(params, info.path), info, plan[info.path].basis, shift)
        )
        if divides:
            changes[info.path]["smooth"] = jnp.asarray(alpha, jnp.float32)
        elif alpha is not None or shift is not None:
            changes[info.norm] = _norm(trees.get(params, info.norm), alpha, shift)
    return Quantized(trees.replace(params, changes), new_plan, alphas, errors)


def _norm(norm: Mapping[str, Any], alpha: np.ndarray | None, shift: np.ndarray | None) -> dict[str, Any]:
    """A LayerNorm whose outputs are `(x - shift) / alpha`."""
    moved = {**norm, "bias": norm["bias"] - (0 if shift is None else shift)}
    return {name: value / (1 if alpha is None else alpha) for name, value in moved.items()}


def _bias(weights: Mapping[str, Any], info: LinearInfo, basis: str, shift: np.ndarray | None) -> dict[str, Any]:
    """A layer's bias, where it has one, that makes good what is taken from its inputs."""
    if shift is None:
        return {"bias": weights["bias"]} if info.bias else {}
    if not info.takes_shift:
        raise ValueError(f"{info.path} takes no shift of its inputs")
    return {"bias": weights["bias"] + shift @ dense_kernel(weights, basis, info.features_in)}


class _Layer(NamedTuple):
    """A quantized layer: its kernels, scales and centres; by product, the relative error; and the plan's clipping."""

    weights: dict[str, Any]
    errors: dict[str, float]
    clips: dict[str, Any]


def _quantize_layer(
    layer_products: Products, alphas: Mapping[str, np.ndarray | None], shift: np.ndarray | None, steps: Steps
) -> _Layer:
    """One layer, its products in turn. Between two factors, `1/alpha` folds into the scales of the first; where one of
    these has an identity block, what is between them is an input or an output itself, and alpha is stored."""
    weights, errors, clips, outputs = dict[str, Any](), dict[str, float](), dict[str, Any](), None
    for part, product in layer_products.items():
        layer, alpha = product.layer, alphas[part]
        x, kernel = jnp.asarray(product.x), jnp.asarray(product.kernel, jnp.float32)
        x = x - shift if part == "x" and shift is not None else x
        target = _product(x, kernel)
        x = x if outputs is None else _between(outputs, layer_products["x"])
        if alpha is not None:
            x, kernel = x / alpha, kernel * alpha[:, None]
        array, grid, outputs = _quantize_product(x, kernel, target, product, steps)
        weights[kernel_names(layer)[part]] = array.stored()
        if layer.granularity != "per_token_dynamic":
            weights[f"{part}_scale"] = grid.scale
            weights |= {} if grid.center is None else {f"{part}_center": grid.center}
        if part == "z" and alpha is not None and layer.copies_between:
            weights["z_smooth"] = jnp.asarray(alpha, jnp.float32)
        elif part == "z" and alpha is not None:
            weights["u"]["scale"] = weights["u"]["scale"] / alpha
        if grid.clip is not None:
            clips["clip_z" if part == "z" else "clip"] = grid.clip
        errors[part] = float(_relative_error(outputs, target))
    return _Layer(weights, errors, clips)


def _between(outputs: Float[Array, "rows r"], first: Product) -> Float[Array, "images tokens r"]:
    """What is between the factors of a pair: what the first puts out, and the inputs that it copies."""
    outputs = outputs.reshape(*first.x.shape[:-1], -1)
    if first.inputs is None:
        return outputs
    return outputs + jnp.asarray(first.x)[..., rest_of(first.inputs[0], first.x.shape[-1])]


def _quantize_product(
    x: Float[Array, "images tokens m"],
    kernel: Float[Array, "m n"],
    target: Float[Array, "rows n"],
    product: Product,
    steps: Steps,
) -> tuple[qarray.QArray, Grid, Float[Array, "rows n"]]:
    """The rounded kernel, the grid of x, and what the product then puts out."""
    grid = steps.ranges(x, product.layer)
    array, outputs = product.rounded(kernel, _rows(x, grid, product.layer.bits), target, steps.round_kernel)
    return array, grid, outputs


@jax.jit(static_argnames="bits")
def on_grid(x: Float[Array, "images tokens m"], grid: Grid, bits: int) -> Float[Array, "images tokens m"]:
    """The inputs as a product on that grid sees them."""
    center = 0 if grid.center is None else grid.center
    return qarray.codes(x - center, grid.scale, bits) * grid.scale + center


# Each a program of its own: XLA would compile every operation for the shapes of every layer.


@jax.jit(static_argnames="bits")
def _rows(x: Float[Array, "images tokens m"], grid: Grid, bits: int) -> Float[Array, "rows m"]:
    return on_grid(x, grid, bits).reshape(-1, x.shape[-1])


@jax.jit
def _product(x: Float[Array, "images tokens m"], kernel: Float[Array, "m n"]) -> Float[Array, "rows n"]:
    return x.reshape(-1, x.shape[-1]) @ kernel


@jax.jit
def _put_out(rows: Float[Array, "rows m"], array: qarray.QArray) -> Float[Array, "rows n"]:
    return rows @ array.dequantize()


@jax.jit
def _by_head(
    kernel: Float[Array, "m n"], rows: Float[Array, "rows m"], target: Float[Array, "rows n"], inputs: Any
) -> list[tuple[Array, Array, Array]]:
    """The kernel of each head, what it multiplies, and what it is to put out."""
    kernels, targets = (jnp.split(one, len(inputs), -1) for one in (kernel, target))
    return [
        (of_head[channels], rows[:, channels], goal)
        for channels, of_head, goal in zip(inputs, kernels, targets, strict=True)
    ]


@jax.jit
def _joined(parts: list[dict[str, Array]], outputs: list[Array]) -> tuple[dict[str, Array], Float[Array, "rows n"]]:
    """The kernels of all heads side by side, and what they put out."""
    return jax.tree.map(lambda *each: jnp.concatenate(each, -1), *parts), jnp.concatenate(outputs, -1)


@jax.jit
def _relative_error(outputs: Float[Array, "rows n"], target: Float[Array, "rows n"]) -> Float[Array, ""]:
    return jnp.linalg.norm(outputs - target) / jnp.maximum(jnp.linalg.norm(target), 1e-30)
