"""Stage quantize: integer models from one merged run, a row for each method. Writes also what the report draws."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lraqvit_jax.base import console, files, trees
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.config import DENSE_INTEGERS, rows
from lraqvit_jax.devices import processes, sharding
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.options.training import Recipe
from lraqvit_jax.plan import check
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.quant import between, mixed, quantize
from lraqvit_jax.run import planning
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages.evaluate import other_params
from lraqvit_jax.training import fit as training
from lraqvit_jax.training import qat
from lraqvit_jax.training.losses import logits_kl
from lraqvit_jax.weights import artifacts

Seen = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A float model and what its products read on the calibration images, `drawn` from the source."""

    model: nn.Module
    params: Any
    batches: list[Any]
    drawn: list[int]
    seen: Seen


def run(ws: Workspace) -> None:
    options = ws.config.quant
    if DENSE_INTEGERS in rows(ws.config) and not ws.has(DENSE_INTEGERS):
        dense, plan = ws.load("dense", "teacher"), plan_lib.dense(ws.spec.layers)
        quantized = planning.quantized(ws.config, ws.spec, plan)
        _save(ws, DENSE_INTEGERS, calibrated(ws, dense), quantized, Quantizer(granularity="per_token_dynamic"), "dense")
    missing_rows = [name for name in options.methods if not ws.has(name)]
    if not missing_rows:
        return
    source = calibrated(ws, ws.load(options.source, "merge"))
    for name in missing_rows:
        _save(ws, name, source, ws.plan, options.methods[name], options.source)


def _save(ws: Workspace, name: str, source: Calibrated, plan: plan_lib.Plan, method: Quantizer, parent: str) -> None:
    """Makes an integer model and writes its artefact."""
    result = make(ws, source, plan, method, name)
    _save_surfaces(ws, name, result.alphas, source.seen)
    ws.save(
        name,
        result.params,
        result.plan,
        parent=parent,
        notes=notes(method, method.granularity or ws.config.quant.granularity, result),
        calibration=source.drawn,
        errors=result.errors,
    )


def notes(method: Quantizer, granularity: str, result: quantize.Quantized) -> str:
    """What the table of results says of a quantized row."""
    scaled = f", {len(result.alphas)} of {len(result.errors)} products scaled" if result.alphas else ""
    tuned = f", tuned for {method.tuning_steps} steps" if method.tuning_steps else ""
    error = np.mean(list(result.errors.values()))
    return f"{method.method}, {granularity}{scaled}, mean product error {error:.2%}{tuned}"


def calibrated(ws: Workspace, source: artifacts.Artifact) -> Calibrated:
    """Runs a float model on the calibration images; says on stderr where they tell too little."""
    batches, drawn = ws.calibration(ws.config.quant.calibration_images)
    batches = list(batches)
    layers = plan_lib.resolved(ws.spec.layers, source.plan)
    seen = statistics.inputs(source.model, source.params, layers, batches, ws.mesh)
    for warning in degenerate(seen):
        console.warn(warning)
    return Calibrated(source.model, source.params, batches, drawn, seen)


def degenerate(seen: Seen) -> list[str]:
    """A sentence for each way in which the calibration inputs say too little."""
    values = {f"{path}:{part}": x for path, parts in seen.items() for part, x in parts.items()}
    constant = {key: int(np.sum(np.ptp(x, axis=(0, 1)) == 0)) for key, x in values.items()}
    constant = {key: count for key, count in constant.items() if count}
    # A head sees one token an image, which is few with any usual number of images and matters little for its ranges.
    several = {key: x for key, x in values.items() if x.shape[1] > 1}
    few = {key: x.shape[0] * x.shape[1] for key, x in several.items() if x.shape[0] * x.shape[1] < x.shape[2]}
    warnings = []
    if constant:
        key, count = max(constant.items(), key=lambda item: item[1])
        warnings.append(
            f"{sum(constant.values())} input channels in {len(constant)} products are constant on the calibration "
            f"images, {count} of {values[key].shape[2]} in {key}: nothing is known of their range."
        )
    if few:
        key, rows = next(iter(few.items()))
        warnings.append(
            f"{len(few)} products see fewer tokens than they have channels, such as {key} with {rows} for "
            f"{values[key].shape[2]}: more quant.calibration_images would tell more."
        )
    return warnings


def make(ws: Workspace, source: Calibrated, plan: plan_lib.Plan, method: Quantizer, name: str) -> quantize.Quantized:
    """One integer model.

    Args:
        ws: configuration and data; its teacher for fine-tuning.
        source: what is quantized.
        plan: with the layers to be quantized so.
        method: how.
        name: of the run, where there is fine-tuning.

    Raises:
        UserError: a plan that makes no sense, a budget that is too small.
    """
    plan = {path: with_options(path, layer, method) for path, layer in plan.items()}
    check.check(plan, ws.spec.layers)
    params = artifacts.host(source.params)
    layers = plan_lib.resolved(ws.spec.layers, plan)
    if method.budget_mb:
        plan = _narrowed(ws, source, params, plan, method)
    result = quantize.quantize(params, plan, layers, source.seen, method)
    return tune(ws, result, method, name) if method.tuning_steps else result


def _narrowed(
    ws: Workspace, source: Calibrated, params: Any, plan: plan_lib.Plan, method: Quantizer
) -> dict[str, plan_lib.LayerPlan]:
    """The plan with the bits of its kernels chosen so that the model fits `budget_mb`."""
    layers = plan_lib.resolved(ws.spec.layers, plan)
    divergences = mixed.divergences(
        _measure(ws, source),
        between.apply(method.between, quantize.products(params, plan, layers, source.seen)),
        method.rounding,
    )
    rest, plan = 4 * other_params(params, plan), dict(plan)
    if method.method != "naive":  # What it may store to divide inputs by counts; `quantize` sets it as it is.
        unfolded = [info.path for info in layers if plan[info.path].form == "quantized" and not info.norm]
        plan |= {path: dataclasses.replace(plan[path], smoothed=True) for path in unfolded}
        divided = [path for path, layer in plan.items() if layer.form == "quantized" and layer.copies_between]
        plan |= {path: dataclasses.replace(plan[path], smoothed_z=True) for path in divided}
    return mixed.allocate(plan, layers, divergences, 1e6 * method.budget_mb - rest)


def with_options(path: str, layer: plan_lib.LayerPlan, method: Quantizer) -> plan_lib.LayerPlan:
    """A quantized layer of the plan with what a method sets otherwise."""
    if layer.form != "quantized":
        return layer
    names = ("granularity", "bits", "weight_bits", "group")
    fields = {name: value for name in names if (value := getattr(method, name))}
    if method.attention and path.endswith(("/qkv", "/query")):
        fields["attention"] = method.attention
    return dataclasses.replace(layer, asymmetric=method.asymmetric or layer.asymmetric, **fields)


def _measure(ws: Workspace, source: Calibrated) -> Any:
    """`changed kernels -> divergence of the logits` on the calibration images; of features, the square of their change
    over that of the features."""

    @jax.jit
    def divergence(params: Any, batch: Any, exact: Any) -> jax.Array:
        logits: Any = source.model.apply({"params": params}, batch["image"])
        logits = jnp.where(batch["mask"][:, None], logits, exact)  # rows that are no image: 0
        if not ws.num_classes:
            return jnp.sum(jnp.square(logits - exact)) / jnp.sum(jnp.square(exact))
        return logits_kl(exact, logits)

    with sharding.use(ws.mesh):
        placed = [sharding.put_batch(batch, ws.mesh) for batch in source.batches]
        exact = [jax.jit(source.model.apply)({"params": source.params}, batch["image"]) for batch in placed]

    def measure(changes: Mapping[str, Any]) -> float:
        like = {path: trees.get(source.params, path).sharding for path in changes}
        params = trees.replace(source.params, {path: jax.device_put(new, like[path]) for path, new in changes.items()})
        with sharding.use(ws.mesh):
            parts = [divergence(params, *pair) for pair in zip(placed, exact, strict=True)]
        return float(jnp.mean(jnp.stack(parts)))

    return measure


def tune(ws: Workspace, result: quantize.Quantized, method: Quantizer, name: str) -> quantize.Quantized:
    """Trains scales, clipping and, where `tuning_rate` is above 0, all else of a quantized model; see `qat`."""
    size, rate, scale_rate = ws.preprocess.size, method.tuning_rate, method.scale_rate
    student = ws.create(result.plan, arithmetic="train")
    start = qat.start(result.params, result.plan, plan_lib.resolved(ws.spec.layers, result.plan))
    placed = sharding.put(start, sharding.abstract_params(student, size, ws.mesh))
    teacher = ws.load("dense", "teacher", dtype=ws.config.dtype)
    paths = trees.flatten(start)
    objective = training.Objective(
        student,
        teacher.model,
        method.distillation,
        freeze=tuple(path for path in paths if path.endswith("smooth") or not (rate or qat.learned_scale(path))),
        scale_ratio=scale_rate / rate if rate else 1.0,
    )
    optimizer, first_rate = ws.config.optimizer, rate or scale_rate
    recipe = Recipe.of(optimizer, method.tuning_steps, learning_rate=first_rate, weight_decay=0.0)
    params, checkpoints = training.fit(ws, name, objective, recipe, placed, teacher.params)
    checkpoints.delete()
    finished, plan = qat.finish(artifacts.host(params), result.plan)
    return result._replace(params=finished, plan=plan)


def surfaces(alphas: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
    """Largest |x| and |x / alpha| by token and channel of every smoothed product, "KEY:before" and "KEY:after"."""
    largest = {}
    for key, alpha in alphas.items():
        path, _, part = key.rpartition(":")
        largest[f"{key}:before"] = np.abs(seen[path][part]).max(axis=0)
        largest[f"{key}:after"] = largest[f"{key}:before"] / alpha
    return largest


def _save_surfaces(ws: Workspace, name: str, alphas: Mapping[str, Any], seen: Seen) -> None:
    """Writes `surfaces` to report/activations-NAME.npz."""
    largest = surfaces(alphas, seen)
    if largest and processes.is_primary_process():
        files.write_arrays(ws.directory / "report" / f"activations-{name}.npz", largest)
