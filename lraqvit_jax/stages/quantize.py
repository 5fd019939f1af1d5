"""Stage quantize: int8 models from one merged run, a row for each method. Writes also what the report draws."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax import checkpoint, statistics
from lraqvit_jax import plan as plan_lib
from lraqvit_jax.quant import quantize
from lraqvit_jax.workspace import Workspace


def run(ws: Workspace) -> None:
    options = ws.config["quant"]
    missing = [name for name in options["methods"] if not ws.has(name)]
    if not missing:
        return
    source = ws.load(options["source"], "merge")
    params = checkpoint.host(source.params)
    batches, drawn = ws.calibration(options["calibration_images"])
    seen = statistics.inputs(source.model, source.params, ws.spec.layers, batches, ws.mesh)
    for name in missing:
        method = options["methods"][name]
        plan = {path: with_options(layer, method) for path, layer in ws.plan.items()}
        plan_lib.check(plan, ws.spec.layers)
        result = quantize.quantize(params, plan, list(ws.spec.layers), seen, method)
        errors = result.errors
        _save_surfaces(ws, name, result.alphas, seen)
        scaled = f", {len(result.alphas)} of {len(errors)} products scaled" if result.alphas else ""
        granularity = method["granularity"] or options["granularity"]
        ws.save(
            name,
            result.params,
            result.plan,
            parent=options["source"],
            notes=f"{method['method']}, {granularity}{scaled}, mean product error {np.mean(list(errors.values())):.2%}",
            calibration=drawn,
            errors=errors,
        )


def with_options(layer: plan_lib.LayerPlan, method: Mapping[str, Any]) -> plan_lib.LayerPlan:
    """A quantized layer of the plan with what a method sets otherwise."""
    if layer.form != "quantized":
        return layer
    fields = {name: method[name] for name in ("granularity", "bits", "weight_bits", "group") if method[name]}
    return dataclasses.replace(layer, asymmetric=method["asymmetric"] or layer.asymmetric, **fields)


def _save_surfaces(ws: Workspace, name: str, alphas: dict, seen: dict) -> None:
    """Largest |x| and |x / alpha| by token and channel of every smoothed product: report/activations-NAME.npz."""
    surfaces = {}
    for key, alpha in alphas.items():
        path, _, part = key.rpartition(":")
        surfaces[f"{key}:before"] = np.abs(seen[path][part]).max(axis=0)
        surfaces[f"{key}:after"] = surfaces[f"{key}:before"] / alpha
    if surfaces:
        folder = ws.directory / "report"
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"activations-{name}.npz", **surfaces)
