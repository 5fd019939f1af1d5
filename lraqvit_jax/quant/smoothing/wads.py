"""WADS, weight-aware distribution scaling, Eq. 11-14: a vector alpha divides the input and multiplies the weight rows.

`alpha* = argmin || Q(X/alpha) Q(alpha W) - X W ||² + penalty`, by gradient steps through straight-through rounding.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant.between import fake_kernel
from lraqvit_jax.quant.fake_quant import ends, fake_quant_input
from lraqvit_jax.quant.quantize import Product
from lraqvit_jax.quant.smoothing.smoothquant import factors

PENALTIES = ("printed", "weight_error", "none")
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
    wanted: Float[Array, "images tokens n"] | None = None,
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
        wanted: `x W`, where it is known already.
    """
    alpha = jnp.exp(log_alpha)
    scaled, weights = x / alpha, alpha[:, None] * kernel
    rounded = fake_quant_input(scaled, layer, None if range_ends is None else range_ends / alpha)
    weights_rounded = fake_kernel(weights, layer)
    wanted = _product(x, kernel) if wanted is None else wanted
    error = weight * jnp.sum(jnp.square(_product(rounded, weights_rounded) - wanted))
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
    grid: bool = True,
) -> Float[Array, " m"]:
    """The best alpha met: of alpha = 1, SmoothQuant's grid, and CHECKS points along Adam's way from the best of those.

    A step sees ROWS tokens or so, of images drawn anew: on ViT-Tiny, three times as many end within 1 % of the same
    error. The range is always that of all inputs, and so is the error that candidates are compared by. From alpha = 1
    alone (`grid` False) 300 steps do not converge for per-tensor activations.
    """
    images, tokens, m = x.shape
    sample = min(images, max(1, round(ROWS / tokens)))
    x_max, w_max, range_ends = jnp.max(jnp.abs(x), (0, 1)), jnp.max(jnp.abs(kernel), 1), ends(x)
    wanted = _product(x, kernel)

    def whole(log_alpha: Array) -> Array:
        def some(part: tuple[Array, Array]) -> Array:
            return objective(log_alpha, part[0], kernel, layer, "none", range_ends, wanted=part[1])

        penalized = objective(log_alpha, jnp.zeros((1, tokens, m)), kernel, layer, penalty, range_ends)
        return penalized + jnp.sum(jax.lax.map(some, (x[:, None], wanted[:, None])))

    more = [jnp.log(factors(x_max, w_max, a)) for a in GRID] if grid else []
    starts = jnp.stack([jnp.zeros_like(x_max), *more])
    losses = jax.lax.map(whole, starts)
    first = starts[jnp.argmin(losses)]
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, max(1, iterations)))

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        log_alpha, state = carry
        drawn = jax.random.permutation(key, images)[:sample]
        arguments = (x[drawn], kernel, layer, penalty, range_ends, images / sample, wanted[drawn])
        gradient = jax.grad(objective)(log_alpha, *arguments)
        updates, state = adam.update(gradient, state)
        return (log_alpha + updates, state), None

    def stretch(carry: Any, keys: Array) -> tuple[Any, None]:
        (log_alpha, state), best, best_loss = carry
        (log_alpha, state), _ = jax.lax.scan(step, (log_alpha, state), keys)
        value = whole(log_alpha)
        best = jnp.where(value < best_loss, log_alpha, best)
        return ((log_alpha, state), best, jnp.minimum(value, best_loss)), None

    checks = min(CHECKS, iterations)
    carry = ((first, adam.init(first)), first, jnp.min(losses))
    if checks:
        # Where they do not divide, a few steps follow the last one, with a learning rate of zero.
        keys = jax.random.split(jax.random.key(0), (checks, -(-iterations // checks)))
        carry, _ = jax.lax.scan(stretch, carry, keys)
    return jnp.exp(carry[1])


def _product(x: Float[Array, "images tokens m"], kernel: Float[Array, "m n"]) -> Float[Array, "images tokens n"]:
    """In two dimensions, which CPUs multiply faster."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def chosen(products: Mapping[str, Product]) -> list[str]:
    """Eq. 13: the products whose weight-rounding error `||Q(W) - W||²` is below the mean over all of them."""
    errors = {}
    for key, product in console.progress(products.items(), "wads", "product"):
        rounded = fake_kernel(jnp.asarray(product.kernel), product.layer)
        errors[key] = float(jnp.sum(jnp.square(rounded - product.kernel)))
    mean = sum(errors.values()) / max(1, len(errors))
    return [key for key, error in errors.items() if error < mean]


def smooth(products: Mapping[str, Product], options: Quantizer, grid: bool = True) -> dict[str, np.ndarray]:
    """Alpha for every product that Eq. 13 selects; products of one shape are optimized together.

    Args:
        products: all products of the model, by key.
        options: penalty, iterations, learning_rate, and select ("below_mean" as in the paper, or "all").

    Raises:
        UserError: unknown penalty or selection.
    """
    for name, known in (("penalty", PENALTIES), ("select", ("below_mean", "all"))):
        if getattr(options, name) not in known:
            raise UserError(f"quant {name} is {getattr(options, name)!r}; {nearest(getattr(options, name), known)}")
    keys = list(products) if options.select == "all" else chosen(products)
    groups: dict[Any, list[str]] = {}
    for key in keys:
        product = products[key]
        groups.setdefault((product.x.shape, product.kernel.shape, product.layer), []).append(key)
    alphas: dict[str, np.ndarray] = {}
    rest = (options.penalty, options.iterations, options.learning_rate, grid)
    for (_, _, layer), members in console.progress(groups.items(), "wads", "group of layers"):
        run = jax.jit(jax.vmap(lambda x, kernel, layer=layer: optimize(x, kernel, layer, *rest)))
        stacked = (np.stack([getattr(products[key], name) for key in members]) for name in ("x", "kernel"))
        alphas |= dict(zip(members, np.asarray(run(*stacked)), strict=True))
    return alphas
