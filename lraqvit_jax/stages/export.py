"""Stage export: StableHLO, ONNX and LiteRT files, each compared with its model on real images, and safetensors for
PyTorch.

Writes `export/`.
"""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lraqvit_jax.base import console, files
from lraqvit_jax.base.console import progress
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import processes
from lraqvit_jax.export import card as model_card
from lraqvit_jax.export import litert, onnx, safetensors, stablehlo, targets
from lraqvit_jax.export.contract import contract
from lraqvit_jax.options.export import LITERT, ExportOptions
from lraqvit_jax.run import results
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact

IMAGES, LABELLED, BATCH = 200, 1000, 10
"""Images of the calibration that outputs are compared on, labelled ones that answers are counted on at most, and how
many of those at once."""
MLIR_SUFFIXES = {"bytecode": "mlirbc", "text": "mlir"}
LITERT_SUFFIXES = {variant: f"{variant}.tflite" for variant in LITERT}
SUFFIXES = ("stablehlo", "onnx", "safetensors", *MLIR_SUFFIXES.values(), *LITERT_SUFFIXES.values())
Images = Float[np.ndarray, "images size size 3"]
BEFORE = {
    "onnx_opset": 0,
    "onnx_input": "float32",
    "onnx_weights": "float32",
    "onnx_activations": "int8",
    "mlir": [],
    "litert": [],
}
"""What files are as whose NAME.json does not say it."""
MEND = "delete it to have the artefact exported anew"


def run(ws: Workspace) -> None:
    """Exports the artefacts of `export.artifacts` and the one to take that have no files yet, or files that were made
    for something else.

    Raises:
        UserError: an artefact that is not there, or platforms on which no file can be checked.
    """
    stablehlo.check(ws.config.export.platforms)
    asked = ws.config.export.onnx_target
    if (target := targets.resolved(asked)) != asked:
        console.say(f"export.onnx_target is {asked!r}: {target!r} for this machine's processor")
    for name in names(ws):
        if not ws.has(name):
            raise UserError(
                f"export.artifacts names {name!r}, which {ws.directory} does not have; run its stage first."
            )
        make(ws, name)
    processes.once(functools.partial(_card, ws, ws.directory / "export"))


def make(ws: Workspace, name: str) -> None:
    """Exports an artefact that is there, where it has no files yet, or files that were made for something else."""
    folder = ws.directory / "export"
    if not _is_current(ws, name, folder / f"{name}.json"):
        artifact = artifacts.load_artifact(ws.path(name))
        processes.once(functools.partial(_export, ws, artifact, folder))


def _card(ws: Workspace, folder: pathlib.Path) -> None:
    """Writes export/README.md."""
    cards = [card for name in names(ws) if (card := results.card(ws.directory, name))]
    if not cards:
        return
    source = artifacts.read_meta(ws.path("dense")).get("weights", {}) if ws.has("dense") else {}
    text = model_card.text(
        results.table(results.read(ws.directory)),
        cards,
        results.taken(ws.directory),
        source.get("source", ""),
        source.get("license", ""),
        ws.config.data.source("eval"),
    )
    path = folder / "README.md"
    if not path.exists() or path.read_text() != text:
        files.write_atomically(path, text)


def names(ws: Workspace) -> list[str]:
    """What is exported: as the configuration says, and what the results say is to be taken."""
    best = results.pick(results.read(ws.directory)["rows"])
    picked = [best["name"]] if best and ws.has(best["name"]) else []
    return list(dict.fromkeys([*ws.config.export.artifacts, *picked]))


def _asked(ws: Workspace, name: str) -> dict[str, Any]:
    """What NAME.json says of how its files were asked for: where one of these differs, they are made again."""
    options = ws.config.export
    return {
        "platforms": list(options.platforms),
        "onnx_target": targets.resolved(options.onnx_target),
        "onnx_opset": options.onnx_opset,
        "onnx_input": options.onnx_input,
        "onnx_weights": options.onnx_weights,
        "onnx_activations": options.onnx_activations,
        "safetensors": options.safetensors,
        "mlir": list(options.mlir),
        "litert": [] if litert.missing() else list(options.litert),
        "class_names": ws.class_names,
        "fingerprint": ws.fingerprint(name),
    }


def _is_current(ws: Workspace, name: str, card: pathlib.Path) -> bool:
    """Whether the files of an artefact are there, and as the configuration asks for them."""
    if not card.exists():
        return False
    written = files.json_object(card, MEND)
    return all(written.get(field, BEFORE.get(field)) == value for field, value in _asked(ws, name).items())


def _export(ws: Workspace, artifact: Artifact, folder: pathlib.Path) -> None:
    """Writes the files of one artefact, which is on one device, and NAME.json, what they are.

    Files get their names once they are checked, and the card comes last: a run that is killed leaves none that looks
    checked.
    """
    unfinished = folder / f".{artifact.name}{files.UNFINISHED}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    images = calibration_images(ws)
    paths = _write_files(ws, artifact, images, unfinished)
    card = _checked(ws, artifact, images, paths)
    written = folder / f"{artifact.name}.json"
    for path in (written, *(folder / f"{artifact.name}.{suffix}" for suffix in SUFFIXES)):
        path.unlink(missing_ok=True)
    for path in sorted(unfinished.iterdir()):
        path.replace(folder / path.name)
    unfinished.rmdir()
    files.write_atomically(written, json.dumps(card, indent=1) + "\n")
    for suffix, path in paths.items():
        console.say(_sentence(path, card, suffix))


def _checked(ws: Workspace, artifact: Artifact, images: Images, paths: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """Compares the files with their model; what NAME.json says."""
    model = functools.partial(jax.jit(artifact.model.apply), {"params": artifact.params})
    loads: dict[str, Callable[[pathlib.Path], Any]] = {"stablehlo": stablehlo.load, "onnx": onnx.load}
    loads |= dict.fromkeys(MLIR_SUFFIXES.values(), stablehlo.load_module)
    loads |= dict.fromkeys(LITERT_SUFFIXES.values(), litert.load)
    runs = {suffix: loads[suffix](path) for suffix, path in paths.items() if suffix in loads}
    outputs = {
        name: np.asarray(run(images)) for name, run in progress([*runs.items(), ("model", model)], "compare", "model")
    }
    by_itself = {"onnx", *LITERT_SUFFIXES.values()}  # Of other runtimes than JAX's.
    counted = {"model": model} | {suffix: run for suffix, run in runs.items() if suffix in by_itself}
    top1, labelled = _top1(ws, artifact, counted)
    pixels = ws.config.export.onnx_input
    return {
        "name": artifact.name,
        **contract(artifact),
        **({"onnx_contract": contract(artifact, pixels)} if pixels != "float32" else {}),
        **_asked(ws, artifact.name),
        "bytes": {suffix: path.stat().st_size for suffix, path in paths.items()},
        "stablehlo_version": {
            suffix: list(stablehlo.version(path)) for suffix, path in paths.items() if suffix == "mlirbc"
        },
        "checked_images": len(images),
        "parity": {suffix: parity(outputs[suffix], outputs["model"]) for suffix in runs},
        "labelled_images": labelled,
        "top1": top1,
    }


def _write_files(ws: Workspace, artifact: Artifact, images: Images, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every file that is asked for and can be made of an artefact, by its suffix."""
    options, name = ws.config.export, artifact.name
    modules, variants = [MLIR_SUFFIXES[kind] for kind in options.mlir], dict.fromkeys(options.litert)
    suffixes = ["stablehlo", "onnx", "safetensors", *modules, *(LITERT_SUFFIXES[one] for one in variants)]
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in suffixes}
    obstacles = {
        "onnx": onnx.obstacle(artifact.plan, options.onnx_target, options.onnx_opset, **_types(artifact, options)),
        "safetensors": safetensors.obstacle(artifact.plan, options.safetensors),
    }
    for variant in variants:
        obstacles[LITERT_SUFFIXES[variant]] = litert.obstacle(artifact.plan, variant)
    for suffix, reason in obstacles.items():
        if reason:
            console.say(f"no {paths[suffix].name}: {name} {reason}")
            del paths[suffix]
    for suffix in LITERT_SUFFIXES.values() if litert.missing() else ():
        if path := paths.pop(suffix, None):
            console.say(f"no {path.name}: {litert.missing()}")
    writes: dict[str, Callable[[pathlib.Path], Any]] = {
        "stablehlo": functools.partial(
            stablehlo.export, artifact.model, artifact.params, artifact.preprocess.size, options.platforms
        ),
        "onnx": functools.partial(
            onnx.export,
            artifact,
            target=options.onnx_target,
            opset=options.onnx_opset,
            images=options.onnx_input,
            **_types(artifact, options),
        ),
        "safetensors": functools.partial(safetensors.save, artifact, layout=options.safetensors),
    }
    module = (artifact.model, artifact.params, artifact.preprocess.size, options.platforms[0])
    writes |= dict.fromkeys(MLIR_SUFFIXES.values(), functools.partial(stablehlo.export_module, *module))
    for variant, suffix in LITERT_SUFFIXES.items():
        writes[suffix] = functools.partial(litert.export, artifact, variant=variant, images=images)
    for suffix, path in progress(paths.items(), f"export {name}", "file"):
        writes[suffix](path)
    return paths


def _types(artifact: Artifact, options: ExportOptions) -> dict[str, Any]:
    """Of the ONNX file: kernels of a float model as asked for, or activations of an integer one, and nothing of the
    other."""
    if any(layer.form == "quantized" for layer in artifact.plan.values()):
        return {"activations": options.onnx_activations}
    return {"weights": options.onnx_weights}


def calibration_images(ws: Workspace) -> Images:
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


def _top1(ws: Workspace, artifact: Artifact, runs: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Percentage of right answers of each on the same images, evenly spread over data.eval, and how many those are.

    What the model said of them when it was evaluated is not asked again.
    """
    said = _said(ws, artifact.name)
    batches, chosen = ws.evaluation(LABELLED, BATCH)
    known = all(int(index) in said for index in chosen)
    runs = {name: run for name, run in runs.items() if not (known and name == "model")}
    right, total = dict.fromkeys(runs, 0), 0
    for batch in progress(batches, "exported files", "batch"):
        real = batch["mask"] & (batch["label"] >= 0)
        total += int(real.sum())
        for name, run in runs.items():
            right[name] += int(np.sum(real & (np.asarray(run(batch["image"])).argmax(-1) == batch["label"])))
    if known:
        right["model"] = sum(said[int(index)] for index in chosen)
    return {name: 100 * count / max(1, total) for name, count in right.items()}, total


def _said(ws: Workspace, name: str) -> dict[int, bool]:
    """Whether the model was right on each image, by its number, where its row is of what there is now."""
    row: dict[str, Any] = next((row for row in results.read(ws.directory)["rows"] if row["name"] == name), {})
    path = ws.directory / "report" / f"answers-{name}.npz"
    current = row.get("fingerprint") == ws.fingerprint(name) and row.get("images") == ws.inputs["data"]["eval"]
    if not (current and path.exists()):
        return {}
    with np.load(path) as kept:
        right = kept["answer"] == kept["label"]
        return dict(zip(kept["image"].tolist(), right.tolist(), strict=True))


def parity(
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
