"""WADS, weight-aware distribution scaling, Eq. 11-14: a vector alpha divides the input and multiplies the weight rows.

`alpha* = argmin || Q(X/alpha) Q(alpha W) - X W ||² + penalty`, by gradient steps through straight-through rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lraqvit_jax.base import console
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant.between import fake_kernel
from lraqvit_jax.quant.fake_quant import ends, fake_quant_input
from lraqvit_jax.quant.quantize import Products
from lraqvit_jax.quant.smoothing.smoothquant import factors

GRID = np.linspace(0, 1, 11)
ROWS, CHECKS = 200, 10


def objective(
    log_alpha: Float[Array, " m"],
    x: Float[Array, "images tokens m"],
    kernel: Float[Array, "m n"],
    layer: LayerPlan,
    penalty: str,
    range_ends: Float[Array, "2 tokens m"] | None = None,
    weight: float = 1.0,
    target: Float[Array, "images tokens n"] | None = None,
) -> Float[Array, ""]:
    """Eq. 14, differentiable: the output error of the quantized product plus a penalty on the quantized weight.

    Args:
        log_alpha: alpha = exp(log_alpha), so that it stays positive.
        x: the layer's inputs, or a sample of them.
        kernel: its weight.
        layer: bits, group and granularity.
        penalty: "printed", `||Q(alpha W) - W||²` as in the paper, which also pulls alpha to 1; "weight_error",
            `||Q(alpha W)/alpha - W||²`, the rounding error alone, which no common factor of alpha changes; or "none".
        range_ends: of all inputs, where x is a sample; see `fake_quant.ends`.
        weight: of the error of the sample: how many images there are for each in x.
        target: `x W`, where it is known already.
    """
    alpha = jnp.exp(log_alpha)
    scaled, weights = x / alpha, alpha[:, None] * kernel
    rounded = fake_quant_input(scaled, layer, None if range_ends is None else range_ends / alpha)
    weights_rounded = fake_kernel(weights, layer)
    target = _product(x, kernel) if target is None else target
    error = weight * jnp.sum(jnp.square(_product(rounded, weights_rounded) - target))
    if penalty == "printed":
        error += jnp.sum(jnp.square(weights_rounded - kernel))
    elif penalty == "weight_error":
        error += jnp.sum(jnp.square(weights_rounded / alpha[:, None] - kernel))
    return error


def optimize(
    x: Float[Array, "images tokens m"],
    kernel: Float[Array, "m n"],
    layer: LayerPlan,
    penalty: str,
    iterations: int,
    learning_rate: float,
    from_grid: bool = True,
) -> Float[Array, " m"]:
    """The best alpha met: of alpha = 1, SmoothQuant's grid, and CHECKS points along Adam's way from the best of those.

    A step sees ROWS tokens or so, of images drawn anew: on ViT-Tiny, three times as many end within 1 % of the same
    error. The range is always that of all inputs, and so is the error that candidates are compared by. From alpha = 1
    alone (`from_grid` False) 300 steps do not converge for per-tensor activations.
    """
    images, tokens, m = x.shape
    sample = min(images, max(1, round(ROWS / tokens)))
    x_max, w_max, range_ends = jnp.max(jnp.abs(x), (0, 1)), jnp.max(jnp.abs(kernel), 1), ends(x)
    target = _product(x, kernel)

    def whole(log_alpha: Array) -> Array:
        def some(part: tuple[Array, Array]) -> Array:
            return objective(log_alpha, part[0], kernel, layer, "none", range_ends, target=part[1])

        penalized = objective(log_alpha, jnp.zeros((1, tokens, m)), kernel, layer, penalty, range_ends)
        return penalized + jnp.sum(jax.lax.map(some, (x[:, None], target[:, None])))

    def gradient(log_alpha: Array, key: Array) -> Array:
        drawn = jax.random.permutation(key, images)[:sample]
        arguments = (x[drawn], kernel, layer, penalty, range_ends, images / sample, target[drawn])
        return jax.grad(objective)(log_alpha, *arguments)

    more = [jnp.log(factors(x_max, w_max, strength)) for strength in GRID] if from_grid else []
    starts = jnp.stack([jnp.zeros_like(x_max), *more])
    losses = jax.lax.map(whole, starts)
    start = (starts[jnp.argmin(losses)], jnp.min(losses))
    return jnp.exp(_descend(whole, gradient, start, iterations, learning_rate))


def _descend(
    whole: Callable[[Array], Array],
    gradient: Callable[[Array, Array], Array],
    start: tuple[Array, Array],
    iterations: int,
    learning_rate: float,
) -> Float[Array, " m"]:
    """The best of `start`, a log of alpha with its loss, and CHECKS points along Adam's way from there.

    Args:
        whole: `log_alpha -> loss`, on all inputs.
        gradient: `(log_alpha, key) -> gradient`, on a sample.
        start: where to begin, and the loss there.
        iterations: steps.
        learning_rate: that of the first step.
    """
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, max(1, iterations)))

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        log_alpha, state = carry
        updates, state = adam.update(gradient(log_alpha, key), state)
        return (log_alpha + updates, state), None

    def stretch(carry: Any, keys: Array) -> tuple[Any, None]:
        (log_alpha, state), best, best_loss = carry
        (log_alpha, state), _ = jax.lax.scan(step, (log_alpha, state), keys)
        value = whole(log_alpha)
        best = jnp.where(value < best_loss, log_alpha, best)
        return ((log_alpha, state), best, jnp.minimum(value, best_loss)), None

    first, least = start
    checks = min(CHECKS, iterations)
    if not checks:
        return first
    # Where they do not divide, a few steps follow the last one, with a learning rate of zero.
    keys = jax.random.split(jax.random.key(0), (checks, -(-iterations // checks)))
    (_, best, _), _ = jax.lax.scan(stretch, ((first, adam.init(first)), first, least), keys)
    return best


def _product(x: Float[Array, "images tokens m"], kernel: Float[Array, "m n"]) -> Float[Array, "images tokens n"]:
    """In two dimensions, which CPUs multiply faster."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def chosen(products: Products) -> list[str]:
    """Eq. 13: the products whose weight-rounding error `||Q(W) - W||²` is below the mean over all of them."""
    errors = {}
    for key, product in console.progress(products.items(), "wads", "product"):
        rounded = fake_kernel(jnp.asarray(product.kernel), product.layer)
        errors[key] = float(jnp.sum(jnp.square(rounded - product.kernel)))
    mean = sum(errors.values()) / max(1, len(errors))
    return [key for key, error in errors.items() if error < mean]


def smooth(products: Products, options: Quantizer) -> dict[str, np.ndarray]:
    """Alpha for every product that Eq. 13 selects, or for all, as `options.select` says."""
    keys = products if options.select == "all" else chosen(products)
    return minimize({key: products[key] for key in keys}, options)


def minimize(products: Products, options: Quantizer, from_grid: bool = True) -> dict[str, np.ndarray]:
    """Alpha for every product, by `optimize`; products of one shape together.

    Args:
        products: by key.
        options: penalty, iterations, learning_rate.
        from_grid: see `optimize`.
    """
    groups: dict[Any, list[str]] = {}
    for key, product in products.items():
        groups.setdefault((product.x.shape, product.kernel.shape, product.layer), []).append(key)
    alphas: dict[str, np.ndarray] = {}
    rest = (options.penalty, options.iterations, options.learning_rate, from_grid)
    for (_, _, layer), members in console.progress(groups.items(), "wads", "group of layers"):
        run = jax.jit(jax.vmap(lambda x, kernel, layer=layer: optimize(x, kernel, layer, *rest)))
        stacked = (np.stack([getattr(products[key], name) for key in members]) for name in ("x", "kernel"))
        alphas |= dict(zip(members, np.asarray(run(*stacked)), strict=True))
    return alphas
