"""Moments of what the sites of a function read, and of what its outputs feel there."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lraqvit_jax.base.console import progress
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.calibration import observe
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.trace import products
from lraqvit_jax.trace.rewrite import Rewritten
from lraqvit_jax.trace.sites import Site

KEPT = ("logits", "features", "loss")
"""What of the outputs is to stay as it is: logits, which a softmax reads along the last axis; features, every entry of
them; the value of a loss."""


def moments(
    function: Rewritten,
    params: Mapping[str, Any],
    sites: Iterable[Site],
    batches: Iterable[Any],
    keep: str = "logits",
    seed: int = 0,
    queries: Mapping[str, Any] | None = None,
) -> dict[str, Moments]:
    """Moments of every site's input, with what the outputs make of an error at its output; see `observe.moments`.

    Args:
        function: float.
        params: its parameters.
        sites: which.
        batches: as the function takes them.
        keep: of `KEPT`.
        seed: of the random projections of the outputs.
        queries: of sites that give query, key and value together, the channels of the query: its gradient says which
            tokens matter, as in `observe.moments`.

    Raises:
        UserError: another name, or no batch.
    """
    if keep not in KEPT:
        raise UserError(f"metric is {keep!r}; {nearest(keep, KEPT)}")
    sites = list(sites)
    totals: dict[str, dict[str, np.ndarray]] = {site.path: {} for site in sites}
    at = {path: np.asarray(channels) for path, channels in (queries or {}).items()}
    sums = jax.jit(functools.partial(_sums, function, [site.path for site in sites], keep, at))
    examples = 0
    for index, batch in enumerate(progress(batches, "statistics", "batch")):
        examples += products.examples(batch)
        for path, values in sums(params, batch, jax.random.fold_in(jax.random.key(seed), index)).items():
            observe.add(totals[path], values)
    if not examples:
        raise UserError("There are no batches to calibrate on; give some.")
    return {site.path: _means(site, totals[site.path], examples) for site in sites}


def _means(site: Site, sums: dict[str, np.ndarray], examples: int) -> Moments:
    weight = max(float(sums.pop("weight")), 1e-30)
    felt = {name: sums.pop(name) / weight for name in ("felt_second", "felt_mean")}
    gradient = sums.pop("gradient") / examples
    rows = examples * site.tokens * site.calls
    return Moments(**{name: total / rows for name, total in sums.items()}, gradient=gradient, **felt)


def _sums(
    function: Rewritten,
    paths: list[str],
    keep: str,
    at: Mapping[str, np.ndarray],
    params: Any,
    batch: Any,
    key: jax.Array,
) -> dict[str, dict[str, jax.Array]]:
    """The sums of one batch by site."""

    def projected(added: dict[str, list[jax.Array]]) -> tuple[jax.Array, dict[str, list[jax.Array]]]:
        outputs, seen = function.observed(params, batch, added, paths)
        return projection(outputs, key, keep), seen

    shapes = jax.eval_shape(lambda: function.observed(params, batch, {}, paths, outputs_of_sites=True)[1])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    slopes, seen = jax.grad(projected, has_aux=True)(nothing)
    by_site: dict[str, dict[str, jax.Array]] = {}
    for path in paths:
        x, g = (_joined(parts[path]) for parts in (seen, slopes))
        felt = observe.felt(x, g[:, at[path]] if path in at else g)
        by_site[path] = {**observe.sums(x), "gradient": observe.gram(g, g), **felt}
    return by_site


def _joined(calls: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([rows.astype(jnp.float32) for rows in calls])


def projection(outputs: Any, key: jax.Array, keep: str) -> jax.Array:
    """A random projection of all outputs, whose gradient tells what they feel: `E[g gᵀ] = Jᵀ J`."""
    total = jnp.zeros(())
    floats = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    for index, leaf in enumerate(floats):
        z = jnp.ones(leaf.shape) if keep == "loss" else jax.random.normal(jax.random.fold_in(key, index), leaf.shape)
        if keep == "logits" and leaf.ndim:
            z -= jnp.mean(z, -1, keepdims=True)
        total += jnp.sum(leaf.astype(jnp.float32) * z)
    return total
