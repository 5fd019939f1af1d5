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
    folder = ws.directory / "export"
    for name in ws.config["export"]["artifacts"]:
        if (folder / f"{name}.json").exists() and "onnx_target" in files.json_object(folder / f"{name}.json", MEND):
            continue
        if not ws.has(name):
            raise UserError(
                f"export.artifacts names {name!r}, which {ws.directory} does not have; run its stage first."
            )
        found = artifacts.load_artifact(ws.path(name))
        processes.once(functools.partial(_export, ws, found, folder))


def _export(ws: Workspace, found: Artifact, folder: pathlib.Path) -> None:
    """Writes the files of one artefact, which is on one device, and NAME.json, what they are."""
    options, name = ws.config["export"], found.name
    made = {suffix: folder / f"{name}.{suffix}" for suffix in ("stablehlo", "onnx", "safetensors")}
    if reason := onnx.obstacle(found.plan):
        console.say(f"no {made.pop('onnx').name}: {name} {reason}")
    writes: dict[str, Callable[[pathlib.Path], Any]] = {
        "stablehlo": functools.partial(
            stablehlo.export, found.model, found.params, found.preprocess.size, options["platforms"]
        ),
        "onnx": functools.partial(onnx.export, found, target=options["onnx_target"]),
        "safetensors": functools.partial(safetensors.save, found),
    }
    for suffix, path in progress(made.items(), f"export {name}", "file"):
        writes[suffix](path)
    batches, _ = ws.calibration(min(IMAGES, len(ws.source("calibration"))), whole=True)
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    model = functools.partial(jax.jit(found.model.apply), {"params": found.params})
    loads = {"stablehlo": stablehlo.load, "onnx": onnx.load}
    runs = {suffix: loads[suffix](path) for suffix, path in made.items() if suffix in loads}
    outputs = {
        what: np.asarray(run(images)) for what, run in progress([*runs.items(), ("model", model)], "compare", "model")
    }
    parity = {suffix: _parity(outputs[suffix], outputs["model"]) for suffix in runs}
    counted = {"model": model} | {suffix: run for suffix, run in runs.items() if suffix == "onnx"}
    top1, labelled = _top1(ws, found.preprocess, counted)
    card = {
        "name": name,
        "input": ["batch", found.preprocess.size, found.preprocess.size, 3],
        "preprocess": found.preprocess.to_json(),
        "class_names": ws.class_names,
        "platforms": list(options["platforms"]),
        "onnx_target": options["onnx_target"],
        "bytes": {suffix: path.stat().st_size for suffix, path in made.items()},
        "checked_images": len(images),
        "parity": parity,
        "labelled_images": labelled,
        "top1": top1,
    }
    files.write_atomically(folder / f"{name}.json", json.dumps(card, indent=1) + "\n")
    for suffix, path in made.items():
        said = f"export/{path.name}: {card['bytes'][suffix] / 1e6:.3f} MB"
        if check := parity.get(suffix):
            said += (
                f", top-1 equal to the model's on {check['top1_agreement']:.1%} of {len(images)} images, "
                f"logits within {check['max_relative_difference']:.1e}, "
                f"{check['mean_relative_difference']:.1e} on average"
            )
        if suffix in top1:
            said += f"; top-1 {top1[suffix]:.2f} % of {labelled:,} images, the model's {top1['model']:.2f} %"
        console.say(said)


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


def _parity(got: Float[np.ndarray, "images classes"], want: Float[np.ndarray, "images classes"]) -> dict[str, float]:
    """Share of equal answers; largest and mean difference of the logits, and both over the largest logit."""
    difference, largest = np.abs(got - want), np.abs(want).max()
    return {
        "top1_agreement": float(np.mean(got.argmax(-1) == want.argmax(-1))),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "max_relative_difference": float(difference.max() / largest),
        "mean_relative_difference": float(difference.mean() / largest),
    }
