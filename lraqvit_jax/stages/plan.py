"""Stage plan: ranks by what the dense model and calibration images say. Does nothing where the shapes alone decide."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lraqvit_jax.base import console, trees
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.calibration.changes import Changes, squared_change
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.devices import sharding
from lraqvit_jax.lowrank import block, kfac, spectra, whitened
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import blocks, budget, cost, ranks
from lraqvit_jax.plan.records import Integers, LayerPlan, LinearInfo, Plan
from lraqvit_jax.run import planning
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages import rounding, search, searched, sizes
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact


def run(ws: Workspace) -> Workspace:
    """Measures, writes plan.json, and gives back the workspace with that plan."""
    if not ws.provisional:
        return ws
    dense = ws.load("dense", "teacher")
    options, goal = ws.config.plan, ws.config.goal
    layers = ranks.factorized(ws.spec.layers, options.keep_dense, options.pivot)
    batches, _ = ws.calibration(ws.config.factorize.calibration_images)
    gradients = options.method in ("logits", "products")
    seed = ws.config.seed
    moments = statistics.moments(dense.model, dense.params, layers, batches, ws.mesh, gradients, seed)
    if options.method == "products":
        planner = Planner.of(ws, dense, layers, moments, searched.widths(ws.directory) if goal.is_set else {})
        pairs = functools.partial(_pairs, ws, dense, layers, moments)
        ws = dataclasses.replace(ws, moments=moments)
        planned = search.Search(ws, dense, planner, pairs).run() if goal.is_set else planner.plan(ws, options)
    else:
        chosen = choose(ws, dense, layers, moments, options)
        planned = ranks.of_ranks(ws.spec.layers, chosen, options.pivot)
    return dataclasses.replace(ws.with_plan(planned), moments=moments)


@dataclasses.dataclass(frozen=True)
class Planner:
    """The method "products": the closed forms of every block that may be changed, and what was measured so far, for any
    number of budgets."""

    solved: Mapping[str, block.Solved]
    changes: Changes
    scales: blocks.Scales
    widths: rounding.Losses
    others: Sequence[LinearInfo] = ()
    costs: dict[str, dict[Any, float]] = dataclasses.field(default_factory=dict)
    """Of layers at sizes, by the unit, as they were asked for."""

    @classmethod
    def of(
        cls,
        ws: Workspace,
        dense: Artifact,
        layers: list[LinearInfo],
        moments: Mapping[str, Moments],
        known: rounding.Losses | None = None,
    ) -> "Planner":
        """Solves every block; arguments as of `choose`, the moments with gradients, and what is `known` of widths from
        before."""
        solved = block.solve(blocks.blocks(layers), artifacts.host(dense.params), moments)
        batches = ws.others(ws.config.factorize.calibration_images, ws.config.plan.measured_images)
        changes = Changes(dense.model, dense.params, batches, ws.mesh)
        planner = cls(solved, changes, sizes.scales(solved), {})
        if not ws.config.plan.widths:
            return planner
        integers = Integers.all(ws.config.plan.widths, ws.config.plan.groups)
        of_blocks = planner.layers
        outside = [info for info in ws.spec.layers if info not in of_blocks]
        others = [
            info for info in outside if planning.quantized_layer(ws.config, info, LayerPlan()).form == "quantized"
        ]
        if not known or any(set(losses) != set(integers) for losses in known.values()):
            known = planner._measured(ws, dense, others, moments, integers)
        return dataclasses.replace(planner, widths=known, others=others)

    @property
    def layers(self) -> list[LinearInfo]:
        """Those of the blocks, dense."""
        return [info for one in self.solved.values() for info in (*one.block.attention, *one.block.mlp)]

    def _measured(
        self,
        ws: Workspace,
        dense: Artifact,
        others: list[LinearInfo],
        moments: Mapping[str, Moments],
        integers: list[Integers],
    ) -> rounding.Losses:
        """What rounding loses, of the layers of the blocks, and of others with the moments that these read."""
        method = next(iter(ws.config.quant.methods.values())).rounding
        read: Mapping[str, Moments] = {}
        if others and method != "nearest":
            batches, _ = ws.calibration(ws.config.factorize.calibration_images)
            read = statistics.moments(dense.model, dense.params, others, batches, ws.mesh)
        kernels = artifacts.host({info.path: trees.get(dense.params, info.path)["kernel"] for info in others})
        measured = itertools.chain(
            rounding.of_blocks(self.solved, moments, self.changes), rounding.of_others(kernels, read, self.changes)
        )
        parts = [one.block for one in self.solved.values()]
        count = sum(4 * bool(part.attention) + 2 * bool(part.mlp) for part in parts) + len(others)
        return rounding.measure(measured, count, integers, method)

    def plan(self, ws: Workspace, options: PlanOptions) -> dict[str, LayerPlan]:
        """The float plan for the options' budget."""
        parts = [one.block for one in self.solved.values()]
        deployed = functools.partial(planning.quantized_layer, ws.config)
        form_cost = cost.form_cost(options.unit, deployed, _table_of(options))
        curves = {path: one.curves for path, one in self.solved.items()}
        limit = cost.limit(self.layers, options.budget, form_cost, options.unit)
        lost, others = (self.widths, self.others) if options.unit == "bytes" else ({}, ())
        # The share is of the blocks; what others save of their own bytes goes to them.
        limit += sum(form_cost(info, LayerPlan()) for info in others)
        multiples = options.multiple, options.head_multiple
        costs = self.costs.setdefault(options.unit, {})
        problem = blocks.Problem(parts, curves, form_cost, limit, *multiples, lost, others, costs)
        chosen = sizes.choose(self.solved, problem, self.changes, self.scales, options)
        return blocks.plan_of(ws.spec.layers, chosen)


def _pairs(
    ws: Workspace, dense: Artifact, layers: list[LinearInfo], moments: Mapping[str, Moments], budget: float
) -> dict[str, LayerPlan]:
    """Plain pairs at a share of the encoder's parameters, where the logits change least."""
    plain = [dataclasses.replace(info, pivoted=False) for info in layers]
    options = dataclasses.replace(ws.config.plan, method="logits", budget=budget, unit="params", pivot=False)
    return ranks.of_ranks(ws.spec.layers, choose(ws, dense, plain, moments, options), False)


def choose(
    ws: Workspace,
    dense: Artifact,
    layers: list[LinearInfo],
    moments: Mapping[str, Moments],
    options: PlanOptions,
) -> dict[str, int]:
    """Ranks by a method of `ranks.MEASURED`, but "products", which chooses more.

    Args:
        ws: for the plan of the deployed model, and for images where the method measures.
        dense: the model.
        layers: those to factorize.
        moments: of their inputs; with gradients for "logits".
        options: method, budget, unit, multiple.
    """
    loss_curves = curves(dense, layers, moments, options.method)
    if options.method == "sensitivity":
        loss_curves = _scaled(ws, dense, layers, moments, loss_curves)
    arguments = (layers, loss_curves, options.budget, options.multiple, rank_cost(options, ws.plan))
    return budget.energy(*arguments) if options.method == "energy" else budget.least_loss(*arguments)


def curves(
    dense: Artifact, layers: list[LinearInfo], moments: Mapping[str, Moments], method: str
) -> dict[str, budget.Curve]:
    """What every layer loses at every rank: mean square of the logits' change for "logits", else the share of the
    variance of its own output."""
    params = artifacts.host(dense.params)

    def curve(layer: LinearInfo) -> budget.Curve:
        kernel, layer_moments = np.asarray(trees.get(params, layer.path)["kernel"], np.float64), moments[layer.path]
        if method == "logits":
            values = kfac.losses(kernel, layer_moments)
        else:
            values = whitened.principal(kernel, layer_moments.covariance)[0]
            values = values / max(np.sum(values), 1e-30)
        return budget.loss_curve(values)

    return dict(zip([layer.path for layer in layers], spectra.each(curve, layers, "plan"), strict=True))


def rank_cost(options: PlanOptions, plan: Plan) -> cost.RankCost:
    """What a layer costs in `options.unit`; bytes are those of the form that `plan` deploys it in."""

    def stored(layer: LinearInfo, rank: int) -> int:
        deployed, entry = plan[layer.path], ranks.entry(layer, rank, options.pivot)
        form = deployed.form if deployed.form == "quantized" else entry.form
        return cost.layer_cost(layer, dataclasses.replace(deployed, form=form, rank=rank, basis=entry.basis)).bytes

    if options.unit == "latency" and options.pivot:
        milliseconds = cost.form_cost("latency", lambda _, layer: layer, cost.table(options.latency))
        return lambda layer, rank: milliseconds(layer, ranks.entry(layer, rank, True))
    if options.unit == "latency":
        return cost.latency(cost.table(options.latency))
    return {"params": cost.parameters, "macs": cost.macs, "bytes": stored}[options.unit]


def _table_of(options: PlanOptions) -> Any:
    """The table of latencies that the options name, where they are the unit."""
    return cost.table(options.latency) if options.unit == "latency" else None


def _scaled(
    ws: Workspace,
    dense: Artifact,
    layers: list[LinearInfo],
    moments: Mapping[str, Moments],
    loss_curves: Mapping[str, budget.Curve],
) -> dict[str, budget.Curve]:
    """Curves in units of the logits: each layer alone is truncated to its uniform-ratio rank, and the mean square
    change of the logits that this makes is divided by what its curve says there."""
    rank = ranks.uniform_ratio(layers, ws.config.plan.budget, ws.config.plan.multiple)
    batches, _ = ws.calibration(min(64, ws.config.factorize.calibration_images))
    params = artifacts.host(dense.params)
    with sharding.use(ws.mesh):
        apply = jax.jit(lambda params, images: dense.model.apply({"params": params}, images))

        @jax.jit
        def change(params: Any, images: jax.Array, dense_logits: jax.Array, mask: jax.Array) -> jax.Array:
            logits: Any = dense.model.apply({"params": params}, images)
            return squared_change(logits, dense_logits, mask)

        placed = [sharding.put_batch(batch, ws.mesh) for batch in batches]
        dense_logits = [apply(dense.params, batch["image"]) for batch in placed]
        scaled = {}
        for layer in console.progress(layers, "sensitivity", "layer"):
            layer_params = trees.get(params, layer.path)
            pair = whitened.truncate(layer_params["kernel"], moments[layer.path].covariance, rank[layer.path])
            kernel = jax.device_put((pair.u @ pair.v).astype(np.float32), sharding.replicated(ws.mesh))
            replaced = trees.replace(
                dense.params, {layer.path: {**trees.get(dense.params, layer.path), "kernel": kernel}}
            )
            parts = zip(placed, dense_logits, strict=True)
            total = sum(float(change(replaced, batch["image"], logits, batch["mask"])) for batch, logits in parts)
            curve = loss_curves[layer.path]
            scaled[layer.path] = curve * (total / max(float(curve[rank[layer.path]]), 1e-30))
    return scaled
