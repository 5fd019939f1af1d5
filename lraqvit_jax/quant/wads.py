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

from lraqvit_jax.errors import UserError, nearest
from lraqvit_jax.plan import LayerPlan
from lraqvit_jax.quant.between import fake_kernel
from lraqvit_jax.quant.fake_quant import fake_quant_input
from lraqvit_jax.quant.quantize import Product
from lraqvit_jax.quant.smoothquant import factors

PENALTIES = ("printed", "weight_error", "none")
GRID = np.linspace(0, 1, 11)


def objective(
    log_alpha: Float[Array, " m"],
    x: Float[Array, "images tokens m"],
    kernel: Float[Array, "m n"],
    layer: LayerPlan,
    penalty: str,
) -> Float[Array, ""]:
    """Eq. 14, differentiable: the output error of the quantized product plus a penalty on the quantized weight.

    Args:
        log_alpha: alpha = exp(log_alpha), so that it stays positive.
        x: the layer's inputs.
        kernel: its weight.
        layer: bits, group and granularity.
        penalty: "printed", `||Q(alpha W) - W||²` as in the paper, which also pulls alpha to 1; "weight_error",
            `||Q(alpha W)/alpha - W||²`, the rounding error alone, which no common factor of alpha changes; or "none".
    """
    alpha = jnp.exp(log_alpha)
    scaled, weight = x / alpha, alpha[:, None] * kernel
    rounded, weight_rounded = fake_quant_input(scaled, layer), fake_kernel(weight, layer)
    rows = (-1, x.shape[-1])
    error = jnp.sum(jnp.square(rounded.reshape(rows) @ weight_rounded - x.reshape(rows) @ kernel))
    if penalty == "printed":
        error += jnp.sum(jnp.square(weight_rounded - kernel))
    elif penalty == "weight_error":
        error += jnp.sum(jnp.square(weight_rounded / alpha[:, None] - kernel))
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
    """The best alpha met: from alpha = 1, from SmoothQuant's grid, and along Adam steps from the best of those.

    From alpha = 1 alone (`grid` False) 300 steps do not converge for per-tensor activations.
    """
    x_max, w_max = jnp.max(jnp.abs(x), axis=(0, 1)), jnp.max(jnp.abs(kernel), axis=1)

    def loss(log_alpha: Array) -> Array:
        return objective(log_alpha, x, kernel, layer, penalty)

    more = [jnp.log(factors(x_max, w_max, a)) for a in GRID] if grid else []
    starts = jnp.stack([jnp.zeros_like(x_max), *more])
    losses = jax.lax.map(loss, starts)
    first = starts[jnp.argmin(losses)]
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, max(1, iterations)))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        log_alpha, state, best, best_loss = carry
        value, gradient = jax.value_and_grad(loss)(log_alpha)
        better = value < best_loss
        best, best_loss = jnp.where(better, log_alpha, best), jnp.where(better, value, best_loss)
        updates, state = adam.update(gradient, state)
        return (log_alpha + updates, state, best, best_loss), None

    carry = (first, adam.init(first), first, jnp.min(losses))
    (last, _, best, best_loss), _ = jax.lax.scan(step, carry, length=iterations)
    return jnp.exp(jnp.where(loss(last) < best_loss, last, best))


def chosen(products: Mapping[str, Product]) -> list[str]:
    """Eq. 13: the products whose weight-rounding error `||Q(W) - W||²` is below the mean over all of them."""
    errors = {}
    for key, product in products.items():
        rounded = fake_kernel(jnp.asarray(product.kernel), product.layer)
        errors[key] = float(jnp.sum(jnp.square(rounded - product.kernel)))
    mean = sum(errors.values()) / max(1, len(errors))
    return [key for key, error in errors.items() if error < mean]


def smooth(products: Mapping[str, Product], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Alpha for every product that Eq. 13 selects; products of one shape are optimized together.

    Args:
        products: all products of the model, by key.
        options: penalty, iterations, learning_rate, and select ("below_mean" as in the paper, or "all").

    Raises:
        UserError: unknown penalty or selection.
    """
    for name, known in (("penalty", PENALTIES), ("select", ("below_mean", "all"))):
        if options[name] not in known:
            raise UserError(f"quant {name} is {options[name]!r}; {nearest(options[name], known)}")
    keys = list(products) if options["select"] == "all" else chosen(products)
    groups: dict[Any, list[str]] = {}
    for key in keys:
        product = products[key]
        groups.setdefault((product.x.shape, product.kernel.shape, product.layer), []).append(key)
    alphas: dict[str, np.ndarray] = {}
    rest = (options["penalty"], options["iterations"], options["learning_rate"], options.get("grid", True))
    for (_, _, layer), members in groups.items():
        run = jax.jit(jax.vmap(lambda x, kernel, layer=layer: optimize(x, kernel, layer, *rest)))
        stacked = (np.stack([getattr(products[key], name) for key in members]) for name in ("x", "kernel"))
        alphas |= dict(zip(members, np.asarray(run(*stacked)), strict=True))
    return alphas
