"""Every file that can be exported of a model, beside the model: how far its logits are, and who is right how often.

    python -m tests.slow.files ARTIFACT ... --images folder:LABELLED [--count 1000] [--only "onnx qdq*"]

An artefact is DIR/checkpoints/NAME. Each is written in every kind that it has, and each file run in its runtime on the
first images of the source; a table in Markdown is printed, a row as soon as it is there. What cannot be written or run
is listed under it, with the reason. Files that compute another model than the artefact (kernels rounded, LiteRT's own
integers of a float model) are marked with "~". Exit code 1: a file that is to be the model, and whose top-1 is more
than POINTS from the model's.
"""

import dataclasses
import fnmatch
import functools
import importlib.util
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lraqvit_jax.base import arguments, console
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import matching, pipeline, sources
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.export import litert, onnx, safetensors, stablehlo
from lraqvit_jax.options.export import LAYOUTS, LITERT, TARGETS, WEIGHTS
from lraqvit_jax.weights import artifacts

POINTS = 0.3
"""Of top-1, that a file may be from its model."""
BATCH = 10
OPSET = 17
"""The oldest that files are written for."""
HEAD = """\
| model | file | bytes | runtime | largest difference of logits (of largest) | same answer | top-1, model's |
|---|---|---|---|---|---|---|"""
Run = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to write a model.

    Attributes:
        name: what the table calls it.
        suffix: of the file.
        write: writes an artefact to a path.
        runs: by the runtime's name, what reads the file as a function from images to logits.
        same: whether the file computes the model, up to roundings.
        obstacle: why there is none, "" if there is one.
    """

    name: str
    suffix: str
    write: Callable[[artifacts.Artifact, pathlib.Path], Any]
    runs: dict[str, Callable[[pathlib.Path], Run]]
    same: bool = True
    obstacle: str = ""


def integers(artifact: artifacts.Artifact) -> bool:
    return any(layer.form == "quantized" for layer in artifact.plan.values())


def kinds(artifact: artifacts.Artifact, images: np.ndarray) -> Iterator[Kind]:
    """Every kind, those that the model has not with their obstacle."""
    plan, size = artifact.plan, artifact.preprocess.size
    runs = {"ONNX Runtime": onnx.load}
    for target in TARGETS:
        if target != "auto":
            write = functools.partial(onnx.export, target=target)
            read = runs | (openvinos(size) if target == "qdq" else {})
            yield Kind(f"onnx {target}", "onnx", write, read, obstacle=onnx.obstacle(plan, target))
    odd = onnx.obstacle(plan, opset=OPSET)
    yield Kind(f"onnx opset {OPSET}", "onnx", functools.partial(onnx.export, opset=OPSET), runs, obstacle=odd)
    pixels = functools.partial(onnx.export, images="uint8")
    yield Kind("onnx uint8 pixels", "onnx", pixels, runs, obstacle=onnx.obstacle(plan))
    for weights in WEIGHTS[1:]:
        write, odd = functools.partial(onnx.export, weights=weights), onnx.obstacle(plan, weights=weights)
        yield Kind(f"onnx {weights} weights", "onnx", write, runs, same=False, obstacle=odd)
    wide = functools.partial(onnx.export, target="qdq", activations="uint16")
    odd = onnx.obstacle(plan, "qdq", activations="uint16")
    yield Kind("onnx qdq, uint16 activations", "onnx", wide, runs | openvinos(size), same=False, obstacle=odd)
    for variant in LITERT:
        write = functools.partial(litert.export, variant=variant, images=images)
        odd, own = litert.obstacle(plan, variant) or litert.missing(), variant in ("float32", "integer")
        yield Kind(f"litert {variant}", "tflite", write, {"LiteRT": litert.load}, same=own, obstacle=odd)
    yield Kind("stablehlo", "stablehlo", stablehlos(artifact), {"JAX": stablehlo.load})
    for suffix in ("mlirbc", "mlir"):
        yield Kind(suffix, suffix, module(size), {"PJRT": stablehlo.load_module})
    for layout in LAYOUTS:
        write, odd = functools.partial(safetensors.save, layout=layout), safetensors.obstacle(plan, layout)
        odd = odd or ("" if importlib.util.find_spec("torch") else "is not run: torch is not installed")
        yield Kind(f"safetensors {layout}", "safetensors", write, {"PyTorch": torch}, not integers(artifact), odd)


def stablehlos(artifact: artifacts.Artifact) -> Callable[..., Any]:
    def write(_: artifacts.Artifact, path: pathlib.Path) -> None:
        stablehlo.export(artifact.model, artifact.params, artifact.preprocess.size, ("cpu",), path)

    return write


def module(size: int) -> Callable[..., Any]:
    def write(artifact: artifacts.Artifact, path: pathlib.Path) -> None:
        stablehlo.export_module(artifact.model, artifact.params, size, "cpu", path)

    return write


def openvinos(size: int) -> dict[str, Callable[[pathlib.Path], Run]]:
    """OpenVINO as it is by itself, and with what it does not round in float32."""

    def load(path: pathlib.Path, properties: dict[str, Any]) -> Run:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape([-1, size, size, 3])
        compiled = core.compile_model(model, "CPU", properties)
        return lambda images: compiled([np.asarray(images)])[0]

    if importlib.util.find_spec("openvino") is None:
        return {}
    return {
        "OpenVINO": functools.partial(load, properties={}),
        "OpenVINO, f32": functools.partial(load, properties={"INFERENCE_PRECISION_HINT": "f32"}),
    }


def torch(path: pathlib.Path) -> Run:
    """By `runtimes.torch`, whose int8 has scales of its own."""
    import torch

    from lraqvit_jax.runtimes.torch import model

    built = model(path)

    def run(images: Any) -> np.ndarray:
        with torch.inference_mode():
            return built(torch.from_numpy(np.asarray(images))).numpy()

    return run


def prepared(
    artifact: artifacts.Artifact, source: str, count: int, role: str = "eval"
) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a source, and their labels as the model numbers classes, -1 for one that it has not."""
    if count <= 0:
        raise UserError(f"--count is {count}; give 1 at least.")
    meta = artifact.meta
    classes = Classes.of(meta["num_classes"], meta["class_names"] or (), meta.get("data_names"))
    matched = matching.matched(sources.load(source, role), classes, short(source))
    chosen = np.arange(min(count, len(matched)))
    batches = list(pipeline.ordered(matched, artifact.preprocess, batch_size=BATCH, indices=chosen))
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    return images, np.concatenate([batch["label"][batch["mask"]] for batch in batches])


def model(artifact: artifacts.Artifact) -> Run:
    """The artefact itself."""
    return functools.partial(jax.jit(artifact.model.apply), {"params": artifact.params})


def logits(run: Run, images: np.ndarray) -> np.ndarray:
    parts = [np.asarray(run(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Percent."""
    return float(100 * np.mean((scores.argmax(-1) == labels)[labels >= 0]))


def table(
    artifact: artifacts.Artifact, images: np.ndarray, labels: np.ndarray, only: str = "*"
) -> tuple[list[str], list[str]]:
    """Prints the rows of a model.

    Args:
        artifact: the model.
        images: prepared.
        labels: of the images.
        only: a pattern of names of kinds.

    Returns:
        the files that are the model and whose top-1 is too far from it; what was left out, and why.
    """
    want, wrong, left = logits(model(artifact), images), list[str](), list[str]()
    right, largest = top1(want, labels), float(np.abs(want).max())
    for kind in kinds(artifact, images[: litert.CALIBRATION]):
        name = f"{artifact.name}, {kind.name}"
        if kind.obstacle and fnmatch.fnmatchcase(kind.name, only):
            left.append(f"{artifact.name}, {kind.name}: {kind.obstacle}")
        if kind.obstacle or not fnmatch.fnmatchcase(kind.name, only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"one.{kind.suffix}"
            kind.write(artifact, path)
            for runtime, load in kind.runs.items():
                try:
                    got = logits(load(path), images)
                except Exception as error:  # Whatever a runtime raises is what is wrong with this file.
                    left.append(f"{name}, {runtime}: {' '.join(str(error).split())[:200]}")
                    continue
                difference, answers = float(np.abs(got - want).max()), got.argmax(-1) == want.argmax(-1)
                score = top1(got, labels)
                print(
                    f"| {artifact.name} | {'' if kind.same else '~ '}{kind.name} | {path.stat().st_size:,} | {runtime} "
                    f"| {difference:.1e} ({difference / largest:.1e}) | {answers.mean():.1%} "
                    f"| {score:.1f}, {right:.1f} |",
                    flush=True,
                )
                if kind.same and abs(score - right) > POINTS + 1e-9:
                    wrong.append(f"{name}, {runtime}")
    return wrong, left


def command(argv: list[str]) -> None:
    parser = arguments.Parser("python -m tests.slow.files", __doc__)
    parser.add_argument("artifact", nargs="+", type=pathlib.Path, help="DIR/checkpoints/NAME")
    parser.add_argument("--images", required=True, help="a data source with labels")
    parser.add_argument("--count", type=int, default=1000, help="how many images, the first ones")
    parser.add_argument("--only", default="*", help="a pattern of kinds, such as 'onnx*'")
    options = parser.parse_args(argv)
    console.set_level(console.QUIET)
    models = [artifacts.load_artifact(path) for path in options.artifact]
    print(HEAD, flush=True)
    wrong, left = list[str](), list[str]()
    for artifact in models:
        found = table(artifact, *prepared(artifact, options.images, options.count), options.only)
        wrong, left = wrong + found[0], left + found[1]
        jax.clear_caches()
    print("\n".join(["", *(f"* left out: {one}" for one in left), *(f"* top-1 is too far: {one}" for one in wrong)]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    arguments.run(command)
