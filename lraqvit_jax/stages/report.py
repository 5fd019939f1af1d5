"""Stage report: `WORKDIR/report.html`, from artefacts alone."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lraqvit_jax import checkpoint, console, metrics, processes, results, tensors, trees
from lraqvit_jax.checkpoint import Artifact
from lraqvit_jax.errors import UserError
from lraqvit_jax.lowrank import spectra
from lraqvit_jax.workspace import Workspace


def run(ws: Workspace) -> None:
    dense = checkpoint.load_artifact(ws.path("dense")) if ws.has("dense") else None
    processes.once(lambda: _write(ws, dense))


def _write(ws: Workspace, dense: Artifact | None) -> None:
    from lraqvit_jax.report import page  # matplotlib takes a second to import

    rows = results.read(ws.directory)["rows"]
    if not rows:
        raise UserError(f"{ws.directory} has no results to report yet; run --stages=teacher first.")
    scaled = [name for name in ws.config["quant"]["methods"] if _surfaces(ws, name)]
    name = "int8_wads" if "int8_wads" in scaled else next(iter(scaled), "")
    makers: list[Callable[[], Any]] = [
        lambda: page.training(metrics.read(ws.directory / "metrics.jsonl")),
        lambda: page.spectra(*_spectra(ws, dense)),
        lambda: page.activations(_surfaces(ws, name), _errors(ws), name),
    ]
    sections = [make() for make in console.progress(makers, "report", "section")]
    plan = page.plan_rows(ws.plan, ws.spec.layers)
    text = page.render(f"{ws.model}: compression report", rows, sections, plan, _provenance(ws))
    metrics.write_atomically(ws.directory / "report.html", text)
    console.say(ws.directory / "report.html")


def _spectra(ws: Workspace, dense: Artifact | None) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    ranks = {path: layer.rank for path, layer in ws.plan.items() if layer.rank}
    if not ranks or not dense:
        return {}, ranks
    spectrum = spectra.memo(ws.config["cache_dir"])
    values = spectra.each(
        lambda path: spectrum(np.asarray(trees.get(dense.params, path)["kernel"])).values, ranks, "spectra"
    )
    return dict(zip(ranks, values, strict=True)), ranks


def _surfaces(ws: Workspace, name: str) -> dict[str, np.ndarray]:
    path = ws.directory / "report" / f"activations-{name}.npz"
    return tensors.read(path) if path.exists() else {}


def _errors(ws: Workspace) -> dict[str, dict[str, float]]:
    methods = [name for name in ws.config["quant"]["methods"] if ws.has(name)]
    return {name: checkpoint.read_meta(ws.path(name))["errors"] for name in methods}


def _mixing(mix: dict[str, float]) -> list[str]:
    return [f"{name} {mix[name]:g}" for name in ("mixup", "cutmix") if mix[name]]


def _provenance(ws: Workspace) -> list[tuple[str, str]]:
    config: dict[str, Any] = ws.config
    meta = checkpoint.read_meta(ws.path("dense")) if ws.has("dense") else {}
    weights = meta.get("weights", {})
    drawn_from = config["data"]["calibration"] or "the training data"
    facts = {
        "model": f"{ws.model}, {ws.num_classes} classes, input {ws.preprocess.size} x {ws.preprocess.size}",
        "teacher": f"{weights['source']}, sha256 {weights['sha256']}"
        if weights.get("source")
        else meta.get("notes", ""),
        "training data": config["data"]["train"],
        "evaluation data": config["data"]["eval"],
        "augmentation": ", ".join([config["augment"] or "none", *_mixing(config["mix"])]),
        "calibration": f"{config['factorize']['calibration_images']} images for low rank, "
        f"{config['quant']['calibration_images']} for int8, from {drawn_from}, "
        f"drawn with seed {config['seed']}",
        "plan": ", ".join(f"{name} {value}" for name, value in config["plan"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items()),
    }
    return [(name, value) for name, value in facts.items() if value]
