"""What is put between the factors of a pair: any invertible M, since `x u v = x (u M) (M^-1 v)`. It costs nothing.

A diagonal M is what the methods do with `alpha` for the second product. "hadamard" is an orthogonal M with entries of
one size, which spreads an outlier over all rank channels (QuaRot, Ashkboos et al. 2024). "spectrum" sets the clipping
ranges of the two factors by the pair's spectrum: uncorrelated rank channels, each of whose singular values is shared
out between the channel and its row of v. "learned" is a scale and a rotation, found by gradient steps on the error of
the quantized pair.
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

from lraqvit_jax.base import console
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.fake_quant import fake_quant, fake_quant_input

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Exponents p that "spectrum" tries: the rank channels keep s^(1 - p), the rows of v get s^p."""
DAMPING = 1e-6
STEPS, LEARNING_RATE = 200, 3e-3
SMALLEST = 1e-8
ROWS = 2048
"""Tokens that the learned rotation looks at; a rotation has r (r - 1) / 2 parameters."""


def apply(kind: str, products: Mapping[str, Any]) -> dict[str, Any]:
    """The products with M put between the factors of every pair.

    Args:
        kind: one of `options.quant.BETWEEN`.
        products: see `quantize.Product`; those of a pair are keyed "layer/path:x" and "layer/path:z". A pair with an
            identity block leaves no M to choose.
    """
    turned = dict(products)
    if kind == "none":
        return turned
    groups: dict[Any, list[str]] = {}
    for key, product in products.items():
        if key.endswith(":z") and not product.layer.basis:
            first = products[f"{key[:-1]}x"]
            groups.setdefault((first.x.shape, first.kernel.shape, product.kernel.shape, product.layer), []).append(key)
    for (_, _, (rank, _), layer), keys in console.progress(groups.items(), "between", "group of layers"):
        matrices = np.stack([hadamard(rank)] * len(keys))
        if kind == "spectrum":
            matrices = np.stack([spectrum(products[f"{key[:-1]}x"], products[key]) for key in keys])
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


def spectrum(first: Any, second: Any) -> Float[np.ndarray, "r r"]:
    """The M of "spectrum" that gives the smallest error of the quantized pair, with or without `hadamard` behind it.

    With C = A Aᵀ the second moment of the rank channels z and P S Qᵀ the singular value decomposition of Aᵀ v, the
    channels `z A^-T P` are white, and `z v = (z A^-T P S^(1-p)) (S^p Qᵀ)`. S are the singular values of the pair's
    outputs.

    Args:
        first: the product with u.
        second: the product with v.
    """
    layer, rank = second.layer, len(second.kernel)
    z, v = second.x.reshape(-1, rank).astype(np.float64), np.asarray(second.kernel, np.float64)
    moment = z.T @ z / len(z)
    moment[np.diag_indices(rank)] += DAMPING * np.trace(moment) / rank + SMALLEST
    lower = np.linalg.cholesky(moment)
    left, values, _ = np.linalg.svd(lower.T @ v, full_matrices=False)
    if left.shape[1] < rank:
        return np.eye(rank)
    values = np.maximum(values, DAMPING * values[0])
    white = scipy.linalg.solve_triangular(lower.T, left)
    candidates = [np.eye(rank), hadamard(rank)]
    candidates += [
        turn for p in SHARES for turn in (white * values ** (1 - p), white * values ** (1 - p) @ hadamard(rank))
    ]
    x, u = jnp.asarray(_rows(first.x)), np.asarray(first.kernel, np.float64)
    seen = fake_quant_input(x, first.layer)
    target = x @ jnp.asarray(u @ v, jnp.float32)
    errors = [
        float(_pair_error(seen, target, *(jnp.asarray(f, jnp.float32) for f in (u @ m, np.linalg.solve(m, v))), layer))
        for m in candidates
    ]
    return candidates[int(np.argmin(errors))]


@functools.partial(jax.jit, static_argnames="layer")
def _pair_error(
    seen: Float[Array, "rows m"],
    target: Float[Array, "rows n"],
    u: Float[Array, "m r"],
    v: Float[Array, "r n"],
    layer: LayerPlan,
) -> Float[Array, ""]:
    """Squared error of the quantized pair, its kernels rounded to nearest."""
    z = fake_quant_input(seen @ fake_kernel(u, layer), layer)
    return jnp.sum(jnp.square(z @ fake_kernel(v, layer) - target))


def learn(
    x: Float[Array, "rows m"], u: Float[Array, "m r"], v: Float[Array, "r n"], layer: LayerPlan
) -> Float[Array, "r r"]:
    """The M that makes the error of the quantized pair small, by Adam through straight-through rounding.

    M is a diagonal matrix times an orthogonal one. The diagonal starts at 1 or at SmoothQuant's factors, the orthogonal
    matrix is the identity or `hadamard` times the Cayley transform of a skew-symmetric one that starts at 0.
    """
    target, eye = x @ u @ v, jnp.eye(u.shape[1])
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
        return _pair_error(seen, target, u @ matrix, inverse @ v, layer)

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
