"""Stage export: StableHLO and ONNX files, each compared with its model on real images, and safetensors for PyTorch.

Writes `export/`.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lraqvit_jax.base import console, files
from lraqvit_jax.base.console import progress
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import pipeline
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import processes
from lraqvit_jax.export import onnx, safetensors, stablehlo
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact

IMAGES, LABELLED, BATCH = 200, 1000, 10
"""Images of the calibration that outputs are compared on, labelled ones that answers are counted on at most, and how
many of those at once."""
MEND = "delete it to have the artefact exported anew"


def run(ws: Workspace) -> None:
    """Exports what has no files yet, or files that were made for something else.

    Raises:
        UserError: an artefact that is not there, or platforms on which no file can be checked.
    """
    stablehlo.check(ws.config.export.platforms)
    folder = ws.directory / "export"
    for name in ws.config.export.artifacts:
        if not ws.has(name):
            raise UserError(
                f"export.artifacts names {name!r}, which {ws.directory} does not have; run its stage first."
            )
        if not _is_current(ws, name, folder / f"{name}.json"):
            artifact = artifacts.load_artifact(ws.path(name))
            processes.once(functools.partial(_export, ws, artifact, folder))


def _asked(ws: Workspace, name: str) -> dict[str, Any]:
    """What NAME.json says of how its files were asked for: where one of these differs, they are made again."""
    options = ws.config.export
    return {
        "platforms": list(options.platforms),
        "onnx_target": options.onnx_target,
        "safetensors": options.safetensors,
        "class_names": ws.class_names,
        "fingerprint": ws.fingerprint(name),
    }


def _is_current(ws: Workspace, name: str, card: pathlib.Path) -> bool:
    """Whether the files of an artefact are there, and as the configuration asks for them."""
    if not card.exists():
        return False
    written = files.json_object(card, MEND)
    return all(written.get(field) == value for field, value in _asked(ws, name).items())


def _export(ws: Workspace, artifact: Artifact, folder: pathlib.Path) -> None:
    """Writes the files of one artefact, which is on one device, and NAME.json, what they are."""
    paths = _write_files(ws, artifact, folder)
    images = _calibration_images(ws)
    model = functools.partial(jax.jit(artifact.model.apply), {"params": artifact.params})
    loads = {"stablehlo": stablehlo.load, "onnx": onnx.load}
    runs = {suffix: loads[suffix](path) for suffix, path in paths.items() if suffix in loads}
    outputs = {
        name: np.asarray(run(images)) for name, run in progress([*runs.items(), ("model", model)], "compare", "model")
    }
    parity = {suffix: _parity(outputs[suffix], outputs["model"]) for suffix in runs}
    counted = {"model": model} | {suffix: run for suffix, run in runs.items() if suffix == "onnx"}
    top1, labelled = _top1(ws, artifact.preprocess, counted)
    size = artifact.preprocess.size
    card = {
        "name": artifact.name,
        "input": ["batch", size, size, 3],
        "preprocess": artifact.preprocess.to_json(),
        **_asked(ws, artifact.name),
        "bytes": {suffix: path.stat().st_size for suffix, path in paths.items()},
        "checked_images": len(images),
        "parity": parity,
        "labelled_images": labelled,
        "top1": top1,
    }
    files.write_atomically(folder / f"{artifact.name}.json", json.dumps(card, indent=1) + "\n")
    for suffix, path in paths.items():
        console.say(_sentence(path, card, suffix))


def _write_files(ws: Workspace, artifact: Artifact, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every file that can be made of an artefact, by its suffix."""
    options, name = ws.config.export, artifact.name
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("stablehlo", "onnx", "safetensors")}
    obstacles = {
        "onnx": onnx.obstacle(artifact.plan),
        "safetensors": safetensors.obstacle(artifact.plan, options.safetensors),
    }
    for suffix, reason in obstacles.items():
        if reason:
            console.say(f"no {paths[suffix].name}: {name} {reason}")
            paths.pop(suffix).unlink(missing_ok=True)
    writes: dict[str, Callable[[pathlib.Path], Any]] = {
        "stablehlo": functools.partial(
            stablehlo.export, artifact.model, artifact.params, artifact.preprocess.size, options.platforms
        ),
        "onnx": functools.partial(onnx.export, artifact, target=options.onnx_target),
        "safetensors": functools.partial(safetensors.save, artifact, layout=options.safetensors),
    }
    for suffix, path in progress(paths.items(), f"export {name}", "file"):
        writes[suffix](path)
    return paths


def _calibration_images(ws: Workspace) -> Float[np.ndarray, "images size size 3"]:
    """IMAGES of them at most, prepared."""
    batches, _ = ws.calibration(min(IMAGES, len(ws.source("calibration"))), whole=True)
    return np.concatenate([batch["image"][batch["mask"]] for batch in batches])


def _sentence(path: pathlib.Path, card: Mapping[str, Any], suffix: str) -> str:
    """What a file is, and how near its model it comes."""
    sentence, top1 = f"export/{path.name}: {card['bytes'][suffix] / 1e6:.3f} MB", card["top1"]
    if check := card["parity"].get(suffix):
        sentence += (
            f", top-1 equal to the model's on {check['top1_agreement']:.1%} of {card['checked_images']} images, "
            f"logits within {check['max_relative_difference']:.1e}, "
            f"{check['mean_relative_difference']:.1e} on average"
        )
    if suffix in top1:
        images = f"{card['labelled_images']:,} images"
        sentence += f"; top-1 {top1[suffix]:.2f} % of {images}, the model's {top1['model']:.2f} %"
    return sentence


def _top1(ws: Workspace, preprocess: Preprocess, runs: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Percentage of right answers of each on the same images, evenly spread over data.eval, and how many those are."""
    source = ws.source("eval")
    chosen = np.linspace(0, len(source) - 1, min(len(source), LABELLED)).astype(int)
    right, total = dict.fromkeys(runs, 0), 0
    batches = pipeline.ordered(source, preprocess, batch_size=BATCH, indices=chosen)
    for batch in progress(batches, "exported files", "batch"):
        real = batch["mask"] & (batch["label"] >= 0)
        total += int(real.sum())
        for name, run in runs.items():
            right[name] += int(np.sum(real & (np.asarray(run(batch["image"])).argmax(-1) == batch["label"])))
    return {name: 100 * count / max(1, total) for name, count in right.items()}, total


def _parity(
    logits: Float[np.ndarray, "images classes"], model_logits: Float[np.ndarray, "images classes"]
) -> dict[str, float]:
    """Share of equal answers; largest and mean difference of the logits, and both over the largest logit."""
    difference, largest = np.abs(logits - model_logits), np.abs(model_logits).max()
    return {
        "top1_agreement": float(np.mean(logits.argmax(-1) == model_logits.argmax(-1))),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "max_relative_difference": float(difference.max() / largest),
        "mean_relative_difference": float(difference.mean() / largest),
    }
