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
LOWEST, HIGHEST = 1e-7, 1e-2
"""Learning rates that are tried where none is given."""
AVERAGED = 4
"""Batches whose slopes say where a first step goes, and as many others, where there are, that say how far."""
JUDGED = 8
"""Batches, at most, on which the loss must be lower after training than before."""


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
    rate must be small, and how small is the function's own affair: 1e-6 for one, 1e-4 for another. Parameters that
    training did not make better on these batches stay as they were, and a line says so.

    Args:
        function: float.
        params: of it.
        dense: the function to be like, of its parameters and a batch.
        dense_params: of it.
        batches: as both take them.
        keep: see `trace.moments.KEPT`; "loss" lowers what the function gives, without the dense one.
        steps: how many.
        learning_rate: the highest; a cosine leads to zero. 0 is where a step along the signs of the slopes of some
            batches lowers the loss of others most.
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

    def loss(values: list[jax.Array], rest: list[jax.Array], teacher: Any, batch: Any) -> jax.Array:
        whole = dict(zip(trained, values, strict=True)) | dict(zip(others, rest, strict=True))
        outputs = function(jax.tree.unflatten(tree, [whole[index] for index in range(len(leaves))]), batch)
        return _loss(outputs, None if keep == "loss" else dense(teacher, batch), keep)

    measured, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    first, rest = [leaves[index] for index in trained], [leaves[index] for index in others]
    draw = np.random.default_rng(seed)
    order = list(draw.permutation(len(batches)))
    if not learning_rate:
        ones = [batches[index] for index in order[:AVERAGED]]
        far = [batches[index] for index in order[AVERAGED : 2 * AVERAGED]] or ones
        slopes = [jnp.zeros_like(leaf) for leaf in first]
        for batch in ones:
            slopes = jax.tree.map(jnp.add, slopes, gradient(first, rest, dense_params, batch)[1])
        learning_rate = _rate(
            lambda values: float(np.mean([measured(values, rest, dense_params, batch) for batch in far])), first, slopes
        )
        console.detail(f"learning rate {learning_rate:.1e}")
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, int(WARMUP * steps)), max(2, steps))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(values: list[jax.Array], state: Any, slopes: Any) -> tuple[list[jax.Array], Any]:
        updates, state = optimizer.update(slopes, state, values)
        return optax.apply_updates(values, updates), state

    values, state, value = [jnp.copy(leaf) for leaf in first], optimizer.init(first), jnp.zeros(())
    for number in console.progress(range(steps), "distil", "step", steps):
        order = order or list(draw.permutation(len(batches)))
        jax.block_until_ready(value)  # One step ahead and no more, as each holds its activations.
        value, slopes = gradient(values, rest, dense_params, batches[order.pop()])
        values, state = update(values, state, slopes)
        if number % 50 == 0 and not np.isfinite(value):
            raise UserError(f"The loss is {float(value)} after {number} steps; lower the learning rate.")
    before, after = (
        float(np.mean([measured(one, rest, dense_params, batch) for batch in batches[:JUDGED]]))
        for one in (first, values)
    )
    if not after < before:
        console.warn(
            f"{steps} steps of distillation did not lower the loss ({before:.3g} before, {after:.3g} after), so the "
            f"function stays untrained; lower learning_rate, which was {learning_rate:.1e}, or take more steps."
        )
        values = first
    for index, leaf in zip(trained, values, strict=True):
        leaves[index] = leaf
    made: dict[str, Any] = jax.tree.unflatten(tree, leaves)
    return made


def _rate(measured: Callable[[list[jax.Array]], float], values: list[jax.Array], slopes: Sequence[jax.Array]) -> float:
    """The learning rate, doubled from LOWEST on, at which one step along the signs of the slopes, Adam's first, has the
    lowest loss; the first that raises the loss ends it."""
    start = measured(values)
    rates, losses = [LOWEST], list[float]()
    while True:
        moved = [value - rates[-1] * jnp.sign(slope) for value, slope in zip(values, slopes, strict=True)]
        losses.append(measured(moved))
        if not losses[-1] < start or 2 * rates[-1] > HIGHEST:
            return rates[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]
        rates.append(2 * rates[-1])


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
