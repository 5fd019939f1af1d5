"""Ways to make a function small, each to the same share of the parameters of the same kernels."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lraqvit_jax
from lraqvit_jax.lowrank import svd, whitened
from lraqvit_jax.plan import ranks
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, Plan
from lraqvit_jax.trace import compress, rewrite
from tests.real.case import Case


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a row.

    Attributes:
        budget: share of the kernels' parameters that stays.
        bits: of integers in a row of its own; 0 is none.
        method: of the pairs of the baselines: "plain", or "pivoted", with an identity block.
        metric: of `compress`, in place of the model's; "" is that.
        steps: of distillation in rows of their own; 0 is none.
        rate: of learning, the highest; 0 has one found.
        keep: folder in which what was compressed is kept for another time; None keeps nothing.
    """

    budget: float
    bits: int = 0
    method: str = "plain"
    metric: str = ""
    steps: int = 0
    rate: float = 0.0
    keep: pathlib.Path | None = None


def dense(case: Case, options: Options) -> lraqvit_jax.Function:
    """As it came."""
    sites = lraqvit_jax.find(case.apply, case.params, case.batches[0])
    return _function(case, {}, sites, {})


def truncated(case: Case, options: Options) -> lraqvit_jax.Function:
    """The pair nearest to each kernel (Eckart, Young 1936), the same share of each."""
    return _uniform(case, options, lambda sites, layers: {layer.path: None for layer in layers}, svd.decompose)


def input_whitened(case: Case, options: Options) -> lraqvit_jax.Function:
    """The pair nearest in the output over the inputs of the calibration data (SVD-LLM: Wang, Zheng, Wan, Zhang, ICLR
    2025), the same share of each kernel."""

    def seconds(sites: Any, layers: list[LinearInfo]) -> dict[str, np.ndarray]:
        function, params = lraqvit_jax.rewrite(case.apply, case.params, {}, sites)
        paths = [layer.path for layer in layers]

        @jax.jit
        def grams(params: Any, batch: Any) -> dict[str, jax.Array]:
            seen = function.observed(params, batch, watched=paths)[1]
            return {path: sum(rows.T @ rows for rows in calls) for path, calls in seen.items()}

        totals: dict[str, Any] = dict.fromkeys(paths, 0)
        for batch in case.batches:
            for path, gram in grams(params, batch).items():
                totals[path] = totals[path] + np.asarray(gram, np.float64)
        return totals

    def decompose(kernel: np.ndarray, rank: int, second: Any) -> Any:
        return whitened.truncate(kernel, second, rank)

    return _uniform(case, options, seconds, decompose)


def ours(case: Case, options: Options) -> lraqvit_jax.Function:
    """`lraqvit_jax.compress`."""
    return _compressed(case, options, options.budget)


@functools.lru_cache(1)
def trained(case: Case, options: Options) -> lraqvit_jax.Function:
    """`lraqvit_jax.compress` with `steps`."""
    small, metric = _compressed(case, options, options.budget), options.metric or case.metric
    of_training = {"metric": metric, "steps": options.steps, "learning_rate": options.rate}
    return compress.trained(small, case.apply, case.params, case.batches, **of_training)


def dense_integers(case: Case, options: Options) -> lraqvit_jax.Function:
    """Whole kernels of `bits`."""
    return compress.integers(_compressed(case, options, 1.0), case.batches, options.bits)


def our_integers(case: Case, options: Options) -> lraqvit_jax.Function:
    """`lraqvit_jax.compress` with `bits`."""
    return compress.integers(ours(case, options), case.batches, options.bits)


def trained_integers(case: Case, options: Options) -> lraqvit_jax.Function:
    """`lraqvit_jax.compress` with `steps` and `bits`."""
    return compress.integers(trained(case, options), case.batches, options.bits)


METHODS: Mapping[str, Callable[[Case, Options], lraqvit_jax.Function]] = {
    "dense": dense,
    "svd": truncated,
    "whitened": input_whitened,
    "dense+int": dense_integers,
    "compress": ours,
    "compress+int": our_integers,
    "trained": trained,
    "trained+int": trained_integers,
}
"""Rows of the table; those with integers are left out at 0 bits, those trained at 0 steps."""


@functools.lru_cache(1)
def _compressed(case: Case, options: Options, budget: float) -> lraqvit_jax.Function:
    """What rows have in common; kept where it is to be."""
    folder = options.keep / f"{budget:g}" if options.keep else None
    if folder and folder.exists():
        return lraqvit_jax.Function.restore(folder, case.apply, case.params, case.batches[0])
    small = compress.smaller(case.apply, case.params, case.batches, budget=budget, metric=options.metric or case.metric)
    if folder:
        small.save(folder)
    return small


def _uniform(
    case: Case,
    options: Options,
    statistics: Callable[[Any, list[LinearInfo]], Mapping[str, Any]],
    decompose: Callable[[np.ndarray, int, Any], Any],
) -> lraqvit_jax.Function:
    """Pairs that each keep the share of their kernel."""
    sites = lraqvit_jax.find(case.apply, case.params, case.batches[0])
    every = [layer for layer in sites.layers if layer.compressible]
    large = [layer for layer in every if options.budget * layer.break_even >= 1]  # not the kernel (m, 1) of a map
    layers = ranks.factorized(large, pivot=options.method == "pivoted")
    seen = statistics(sites, layers)
    rank_of = ranks.uniform_ratio(layers, options.budget)
    entry = {"form": "pivoted", "basis": "output"} if options.method == "pivoted" else {"form": "low_rank"}
    plan = {path: LayerPlan(rank=rank, **entry) for path, rank in rank_of.items()}
    made, leaves = {}, lraqvit_jax.rewrite(case.apply, case.params, {}, sites)[1]["leaves"]
    for path, rank in rank_of.items():
        pair = decompose(np.float64(rewrite.kernel_of(sites, path, leaves)["kernel"]), rank, seen[path])
        made[path] = rewrite.form_of({"u": pair.u, "v": pair.v}, plan[path])
    return _function(case, plan, sites, made)


def _function(case: Case, plan: Plan, sites: Any, made: Mapping[str, Any]) -> lraqvit_jax.Function:
    function, params = lraqvit_jax.rewrite(case.apply, case.params, plan, sites, made)
    return lraqvit_jax.Function(function, jax.tree.map(jnp.asarray, params), function.plan, sites)
