"""Distils a function from the dense one: a few steps of AdamW that bring its outputs back."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.trace.rewrite import Rewritten

WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""


def distil(
    function: Rewritten,
    params: Mapping[str, Any],
    dense: Callable[[Any, Any], Any],
    dense_params: Any,
    batches: Sequence[Any],
    *,
    keep: str,
    steps: int,
    learning_rate: float,
    seed: int,
    fixed: Collection[str] = (),
) -> dict[str, Any]:
    """The parameters after as many steps, each on one of the batches: all of them in an order, then in another.

    Forms are trained as they are deployed: what an identity block copies stays a copy. From a good start the learning
    rate must be small (1e-5 to 1e-4).

    Args:
        function: float.
        params: of it.
        dense: the function to be like, of its parameters and a batch.
        dense_params: of it.
        batches: as both take them.
        keep: see `trace.moments.KEPT`; "loss" lowers what the function gives, without the dense one.
        steps: how many.
        learning_rate: the highest; a cosine leads to zero.
        seed: of the orders.
        fixed: paths of leaves that stay as they are, for which nothing is computed.

    Raises:
        UserError: the loss is no number any more.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    of_paths = [(path[0].key, path[1].key) for path, _ in jax.tree.leaves_with_path(params)]
    trained = [
        index
        for index, (leaf, (part, path)) in enumerate(zip(leaves, of_paths, strict=True))
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not (part == "leaves" and path in fixed)
    ]
    others = sorted(set(range(len(leaves))) - set(trained))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, int(WARMUP * steps)), max(2, steps))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(
        values: list[jax.Array], state: Any, rest: list[jax.Array], teacher: Any, batch: Any
    ) -> tuple[list[jax.Array], Any, jax.Array]:
        def loss(values: list[jax.Array]) -> jax.Array:
            whole = dict(zip(trained, values, strict=True)) | dict(zip(others, rest, strict=True))
            outputs = function(jax.tree.unflatten(tree, [whole[index] for index in range(len(leaves))]), batch)
            return _loss(outputs, None if keep == "loss" else dense(teacher, batch), keep)

        value, slopes = jax.value_and_grad(loss)(values)
        updates, state = optimizer.update(slopes, state, values)
        return optax.apply_updates(values, updates), state, value

    values, rest = [jnp.copy(leaves[index]) for index in trained], [leaves[index] for index in others]
    state, draw, order, value = optimizer.init(values), np.random.default_rng(seed), list[int](), jnp.zeros(())
    for number in console.progress(range(steps), "distil", "step", steps):
        order = order or list(draw.permutation(len(batches)))
        jax.block_until_ready(value)  # One step ahead and no more, as each holds its activations.
        values, state, value = step(values, state, rest, dense_params, batches[order.pop()])
        if number % 50 == 0 and not np.isfinite(value):
            raise UserError(f"The loss is {float(value)} after {number} steps; lower the learning rate.")
    for index, leaf in zip(trained, values, strict=True):
        leaves[index] = leaf
    made: dict[str, Any] = jax.tree.unflatten(tree, leaves)
    return made


def _loss(outputs: Any, dense: Any, keep: str) -> jax.Array:
    """KL(dense || outputs) along the last axis; of features the relative square of the error; of a loss itself."""
    total = jnp.zeros(())
    ones = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if keep == "loss":
        return sum((jnp.mean(leaf) for leaf in ones), total)
    others = [leaf for leaf in jax.tree.leaves(dense) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    for one, other in zip(ones, others, strict=True):
        small, large = one.astype(jnp.float32), jax.lax.stop_gradient(other.astype(jnp.float32))
        if keep == "logits" and small.ndim:
            logs = jax.nn.log_softmax(small), jax.nn.log_softmax(large)
            total += jnp.mean(optax.losses.kl_divergence_with_log_targets(*logs))
        else:
            total += jnp.sum(jnp.square(small - large)) / jnp.maximum(jnp.sum(jnp.square(large)), 1e-30)
    return total
