"""Stage share: `WORKDIR/hub/`, one model as a repository of the Hugging Face Hub, and the repository itself where
`hub.push` names one and a token is there.

The folder has the model in every file that can be made of it (model.safetensors, model.onnx, LiteRT), what they are
(config.json, preprocessor_config.json, plan.json) and README.md, a model card. `lraqvit_jax.load` reads it whole;
ONNX Runtime reads model.onnx without this package.
"""

import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import processes
from lraqvit_jax.export import litert, repository, safetensors
from lraqvit_jax.run import results
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages import export
from lraqvit_jax.weights import artifacts, hub, processors
from lraqvit_jax.weights.artifacts import Artifact

NAME = "hub"
FRONTIER = "search/frontier.svg"


def run(ws: Workspace) -> None:
    """Writes the folder, and pushes it.

    Raises:
        UserError: no `hub.push`; nothing to share; a repository that does not take it.
    """
    options = ws.config.hub
    if not options.push:
        raise UserError("hub.push is empty; name the repository that it is for, --config.hub.push=USER/NAME.")
    name = chosen(ws)
    export.make(ws, name)
    processes.once(functools.partial(_write, ws, artifacts.load_artifact(ws.path(name))))
    processes.once(functools.partial(_push, ws))


def chosen(ws: Workspace) -> str:
    """The artefact that is shared; UserError where it is not there."""
    best = results.pick(results.read(ws.directory)["rows"])
    name = ws.config.hub.artifact or (best["name"] if best else "")
    if not name:
        raise UserError(
            f"{ws.directory} has no result to choose from; set hub.artifact to the one to share, or run the stages "
            "before."
        )
    if not ws.has(name):
        raise UserError(f"hub.artifact is {name!r}, which {ws.directory} does not have; run its stage first.")
    return name


def _write(ws: Workspace, artifact: Artifact) -> None:
    """The folder, whole or not at all."""
    folder, unfinished = ws.directory / NAME, ws.directory / f".{NAME}{files.UNFINISHED}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    told = results.card(ws.directory, artifact.name)
    images = export.calibration_images(ws)
    layout = ws.config.export.safetensors
    layout = "factors" if safetensors.obstacle(artifact.plan, layout) else layout
    safetensors.save(artifact, unfinished / hub.WEIGHTS, layout)
    _check(artifact, unfinished / hub.WEIGHTS, images)
    for path in sorted((ws.directory / "export").glob(f"{artifact.name}.*")):
        ending = path.name.removeprefix(f"{artifact.name}.")
        if ending == "onnx" or ending.endswith("tflite"):
            shutil.copyfile(path, unfinished / f"model.{ending}")
    _litert(artifact, unfinished, images)
    wanted = {
        "config.json": repository.config(artifact, layout),
        processors.FILE: processors.fields(artifact.preprocess),
        "plan.json": artifact.meta["plan"],
    }
    for name, content in wanted.items():
        files.write_atomically(unfinished / name, json.dumps(content, indent=1) + "\n")
    picture = ws.directory / FRONTIER
    if picture.is_file():
        shutil.copyfile(picture, unfinished / picture.name)
    files.write_atomically(unfinished / "README.md", _readme(ws, artifact, told, unfinished))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    console.say(f"{NAME}/: {artifact.name} as {names}")


def _check(artifact: Artifact, path: pathlib.Path, images: export.Images) -> None:
    """Reads the weights back: RuntimeError, for a defect of ours, where that is another model."""
    both = (artifact, safetensors.load(path))
    wanted, got = (np.asarray(jax.jit(one.model.apply)({"params": one.params}, images[: export.BATCH])) for one in both)
    if not np.allclose(got, wanted, atol=1e-4 * np.abs(wanted).max()):
        raise RuntimeError(f"{path} is not the model that it was written of")


def _litert(artifact: Artifact, folder: pathlib.Path, images: export.Images) -> None:
    """A LiteRT file of the usual kind, where none was exported and one can be made."""
    variant = litert.usual(artifact.plan)
    if any(folder.glob("*.tflite")):
        return
    if reason := litert.obstacle(artifact.plan, variant):
        console.say(f"no LiteRT file: {artifact.name} {reason}")
    elif reason := litert.missing():
        console.detail(reason)
    else:
        path = folder / f"model.{variant}.tflite"
        litert.export(artifact, path, variant, images)
        wanted = np.asarray(jax.jit(artifact.model.apply)({"params": artifact.params}, images))
        same = export.parity(litert.load(path)(images), wanted)["top1_agreement"]
        console.say(f"{NAME}/{path.name}: answers equal to the model's on {same:.1%} of {len(images)} images")


def _readme(ws: Workspace, artifact: Artifact, told: dict[str, Any], folder: pathlib.Path) -> str:
    """The card."""
    read, data = results.read(ws.directory), ws.config.data
    source = artifacts.read_meta(ws.path("dense")).get("weights", {}) if ws.has("dense") else {}
    dense = next((row for row in read["rows"] if row["name"] == "dense"), None)
    row = next((row for row in read["rows"] if row["name"] == artifact.name), None)
    return repository.text(
        repository.Shared(
            repository=ws.config.hub.push,
            name=artifact.name,
            source=source.get("source", ""),
            licence=ws.config.hub.license or source.get("license", ""),
            row=row,
            dense=dense,
            table=results.table(read),
            told=told,
            files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            images={"training": data.source("train"), "evaluation": data.source("eval")}
            | {"calibration": data.source("calibration")},
            trained=bool(ws.config.teacher.steps),
        )
    )


def _push(ws: Workspace) -> None:
    options, folder = ws.config.hub, ws.directory / NAME
    address = hub.push(options.push, folder, private=options.private)
    if address:
        console.say(f"pushed to {address}")
    else:
        console.say(
            f"not pushed: there is no token of the Hugging Face Hub; log in with `hf auth login` and run "
            f"--stages=share again, or push {folder} yourself: hf upload {options.push} {folder}"
        )
