"""What is put between the factors of a pair: any invertible M, since `x u v = x (u M) (M^-1 v)`. It costs nothing.

A diagonal M is what the methods do with `alpha` for the second product. "hadamard" is an orthogonal M with entries of
one size, which spreads an outlier over all rank channels (QuaRot, Ashkboos et al. 2024); "learned" is a scale and a
rotation, found by gradient steps on the error of the quantized pair.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from jaxtyping import Array, Float

from lraqvit_jax.plan import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.fake_quant import fake_quant, fake_quant_input

KINDS = ("none", "hadamard", "learned")
STEPS, LEARNING_RATE = 200, 3e-3
SMALLEST = 1e-8
ROWS = 2048
"""Tokens that the learned rotation looks at; a rotation has r (r - 1) / 2 parameters."""


def apply(kind: str, products: Mapping[str, Any]) -> dict[str, Any]:
    """The products with M put between the factors of every pair.

    Args:
        kind: one of KINDS.
        products: see `quantize.Product`; those of a pair are keyed "layer/path:x" and "layer/path:z".
    """
    turned = dict(products)
    if kind == "none":
        return turned
    groups: dict[Any, list[str]] = {}
    for key, product in products.items():
        if key.endswith(":z"):
            first = products[f"{key[:-1]}x"]
            groups.setdefault((first.x.shape, first.kernel.shape, product.kernel.shape, product.layer), []).append(key)
    for (_, _, (rank, _), layer), keys in groups.items():
        matrices = np.stack([hadamard(rank)] * len(keys))
        if kind == "learned":
            stacked = (
                np.stack([_rows(products[f"{key[:-1]}x"].x) for key in keys]),
                np.stack([products[f"{key[:-1]}x"].kernel for key in keys]),
                np.stack([products[key].kernel for key in keys]),
            )
            run = jax.jit(jax.vmap(functools.partial(learn, layer=layer)))
            matrices = np.asarray(run(*stacked), np.float64)
        for key, matrix in zip(keys, matrices, strict=True):
            first, second = products[f"{key[:-1]}x"], products[key]
            turned[f"{key[:-1]}x"] = first._replace(kernel=np.asarray(first.kernel @ matrix, np.float32))
            turned[key] = second._replace(
                x=np.asarray(second.x @ matrix, np.float32),
                kernel=np.asarray(np.linalg.solve(matrix, second.kernel), np.float32),
            )
    return turned


def hadamard(rank: int) -> Float[np.ndarray, "r r"]:
    """An orthogonal matrix with entries of one size: blocks of Hadamard's for the powers of two in `rank`."""
    blocks, left = [], rank
    while left:
        size = 1 << (left.bit_length() - 1)
        blocks.append(scipy.linalg.hadamard(size) / np.sqrt(size))
        left -= size
    return scipy.linalg.block_diag(*blocks)


def learn(
    x: Float[Array, "rows m"], u: Float[Array, "m r"], v: Float[Array, "r n"], layer: LayerPlan
) -> Float[Array, "r r"]:
    """The M that makes the error of the quantized pair small, by Adam through straight-through rounding.

    M is a diagonal matrix times an orthogonal one. The diagonal starts at 1 or at SmoothQuant's factors, the orthogonal
    matrix is the identity or `hadamard` times the Cayley transform of a skew-symmetric one that starts at 0.
    """
    wanted, eye = x @ u @ v, jnp.eye(u.shape[1])
    seen = fake_quant_input(x, layer)
    z_max, v_max = jnp.max(jnp.abs(x @ u), 0), jnp.max(jnp.abs(v), 1)
    even = jnp.log(jnp.maximum(v_max, SMALLEST) / jnp.maximum(z_max, SMALLEST)) / 2

    def matrices(start: Array, free: dict[str, Array]) -> tuple[Array, Array]:
        skew = free["turn"] - free["turn"].T
        rotation = start @ jnp.linalg.solve(eye + skew, eye - skew)
        scale = jnp.exp(free["scale"])
        return scale[:, None] * rotation, rotation.T / scale

    def loss(free: dict[str, Array], start: Array) -> Array:
        matrix, inverse = matrices(start, free)
        first, second = fake_kernel(u @ matrix, layer), fake_kernel(inverse @ v, layer)
        return jnp.sum(jnp.square(fake_quant_input(seen @ first, layer) @ second - wanted))

    bases = jnp.stack([eye, jnp.asarray(hadamard(u.shape[1]), jnp.float32)] * 2)
    starts = {"turn": jnp.zeros((4, *eye.shape)), "scale": jnp.stack([0 * even, 0 * even, even, even])}
    losses = jax.lax.map(lambda one: loss(*one), (starts, bases))
    base, first = jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], (bases, starts))
    adam = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        free, state, best, best_loss = carry
        value, gradient = jax.value_and_grad(loss)(free, base)
        best = jax.tree.map(lambda new, old: jnp.where(value < best_loss, new, old), free, best)
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(free, updates), state, best, jnp.minimum(value, best_loss)), None

    (_, _, best, _), _ = jax.lax.scan(step, (first, adam.init(first), first, jnp.min(losses)), length=STEPS)
    return matrices(base, best)[0]


def fake_kernel(kernel: Float[Array, "m n"], layer: LayerPlan) -> Float[Array, "m n"]:
    """A kernel rounded to nearest, differentiable."""
    scale = qarray.kernel_scale(kernel, layer.kernel_bits, layer.group)
    return fake_quant(kernel, qarray.each_row(scale, len(kernel), layer.group), layer.kernel_bits)


def _rows(x: Float[np.ndarray, "images tokens m"]) -> Float[np.ndarray, "rows m"]:
    rows = x.reshape(-1, x.shape[-1])
    return rows[:: max(1, len(rows) // ROWS)][:ROWS]
