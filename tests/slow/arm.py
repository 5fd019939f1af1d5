"""Files in ONNX Runtime on an Arm processor, emulated or not: sums on integers against int64, logits against JAX's.

    python -m tests.slow.arm COMMAND ... [--packages DIR] [--model DIR/checkpoints/NAME --images folder:PHOTOS]

COMMAND is a Python for arm64 as one starts it here, such as `qemu-aarch64 -cpu neoverse-n1 -L ROOT
ROOT/usr/bin/python3.11`, and DIR the unpacked wheels of numpy and onnxruntime for it. QEMU 7.2 ends with a segmentation
fault as it loads ONNX Runtime 1.32; 10.0 runs it. ROOT needs no more than Debian's packages of Python and the C++
library, unpacked. Processors differ in their instructions for int8: cortex-a72 has none, neoverse-n1 dot products, max
matrix products too (and takes minutes for an image of 224 pixels, the others seconds). Models are small here. With
--model, the first photographs of a source go through those that are named instead, there and here.

Prints a line for each file. Exit code 1: a wrong sum, or logits that are another model's.
"""

import argparse
import functools
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import onnx as onnx_format

from lraqvit_jax.export import onnx
from lraqvit_jax.weights import artifacts
from tests.slow import files
from tests.unit.export import rounding
from tests.unit.export.test_by_head import _float, _quantized
from tests.unit.export.test_onnx import artifact
from tests.unit.export.test_onnx_sums import BATCH, STEP, UNIT, case, embedding

TARGETS = ("arm", "vnni", "avx2", "qdq")
FORMS: dict[str, dict[str, Any] | None] = {
    "float": None,
    "static": {"granularity": "per_tensor"},
    "static, 7 bits": {"granularity": "per_tensor", "weight_bits": 7},
    "static, 4 bits": {"granularity": "per_tensor", "weight_bits": 4},
    "by position": {"granularity": "per_token"},
    "dynamic": {"granularity": "per_token_dynamic"},
    "dynamic, asymmetric": {"granularity": "per_token_dynamic", "asymmetric": True},
}
SUMS = "patch_embed:output"
THERE = """\
import pathlib, sys
sys.path[:0] = sys.argv[2:]
import numpy, onnxruntime, platform
print(platform.machine(), onnxruntime.__version__, flush=True)
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    images = numpy.load(path.with_suffix(".images.npy"))
    parts = [session.run(names[-1:], {"images": images[at : at + 16]})[0] for at in range(0, len(images), 16)]
    numpy.save(path.with_suffix(".there.npy"), numpy.concatenate(parts))
    print(path.name, flush=True)
"""
"""What runs there: the last output of every file."""


def sums(rng: np.random.Generator, path: pathlib.Path, bits: int, granularity: str, target: str) -> np.ndarray:
    """Writes a layer at the ends of its grids, its images beside it; the sums of its products in int64."""
    layer, weights, kernels, codes = case(rng, 8, bits, granularity, 0)
    made = onnx.export(embedding(rng, layer, weights), path, target)
    made.graph.output.append(onnx_format.helper.make_tensor_value_info(SUMS, onnx_format.TensorProto.FLOAT, None))
    onnx_format.save(made, path)
    patches = codes.reshape(BATCH, 2, 2, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(BATCH, 8, 8, 3)
    np.save(path.with_suffix(".images.npy"), (patches * STEP).astype(np.float32))
    return codes.astype(np.int64) @ kernels["kernel"]


def models(rng: np.random.Generator) -> Iterator[tuple[str, Any, np.ndarray]]:
    for model in ("vit_pico_dim64", "swin_pico"):
        for form, fields in FORMS.items():
            yield f"{model}, {form}", *artifact(rng, model, 8, 8, fields)
    narrow, images = _float("vit_pico", rng)
    yield "heads, float", narrow, images
    for form, granularity, method in (("static", "per_tensor", "naive"), ("dynamic", "per_token_dynamic", "dynamic")):
        yield f"heads, {form}", _quantized(narrow, images, granularity, method), images


def written(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, bool]]]:
    """By name of file: right sums; and JAX's logits, and whether the model is one of integers."""
    rng, right, wanted = np.random.default_rng(0), {}, {}
    for bits in (8, 7, 6, 4):
        for granularity in ("per_tensor", "per_token_dynamic"):
            for target in TARGETS:
                if target != "qdq" or granularity == "per_tensor":
                    name = f"sums, {granularity}, {bits} bits, {target}"
                    right[name] = sums(rng, folder / f"{name}.onnx", bits, granularity, target)
    for model, one, images in models(rng):
        logits = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))
        for target in ("arm", "qdq"):
            if not onnx.obstacle(one.plan, target):
                name = f"{model}, {target}"
                onnx.export(one, folder / f"{name}.onnx", target, exact=True)
                np.save(folder / f"{name}.images.npy", images)
                wanted[name] = logits, "float" not in model
    return right, wanted


def compare(folder: pathlib.Path, right: Any, wanted: Any) -> bool:
    """Prints a line for each file; whether all are right."""
    good = True
    for name, want in right.items():
        got = np.rint(np.load(folder / f"{name}.there.npy").reshape(want.shape) / (STEP * UNIT))
        wrong, good = int((got != want).sum()), good and bool((got == want).all())
        print(f"{name}: {wrong} of {want.size} sums wrong, the largest is {int(np.abs(want).max()):,}")
    for name, (want, integers) in wanted.items():
        got = np.load(folder / f"{name}.there.npy")
        errors = np.abs(got - want).max(-1) / np.abs(want).max()
        bound = rounding.FLIPPED if integers else 2 * rounding.ROUNDINGS * rounding.EPS
        good = good and errors.max() < bound
        same = int((got.argmax(-1) == want.argmax(-1)).sum())
        print(f"{name}: logits within {errors.max():.1e} of the largest, {same} of {len(want)} answers equal")
    return good


def real(folder: pathlib.Path, artifact: Any, images: np.ndarray) -> np.ndarray:
    """Writes the file of a model; the logits that it has here."""
    path = folder / f"{artifact.name}.onnx"
    onnx.export(artifact, path, "arm")
    np.save(path.with_suffix(".images.npy"), images)
    return files.logits(onnx.load(path), images)


def compare_real(folder: pathlib.Path, artifact: Any, images: np.ndarray, here: np.ndarray) -> bool:
    """Prints a line for a model; whether what ran there is as near to JAX as what ran here: of integers, values on an
    edge between two part any two exact runtimes."""
    there = np.load(folder / f"{artifact.name}.there.npy")
    want = files.logits(functools.partial(jax.jit(artifact.model.apply), {"params": artifact.params}), images)
    mean, most = (lambda one: float(np.abs(one).mean())), float(np.abs(want).max())
    equal = [int((there.argmax(-1) == other.argmax(-1)).sum()) for other in (want, here)]
    print(
        f"{artifact.name}: {len(images)} images, largest logit {most:.1f}; off from JAX by {mean(there - want):.1e} on "
        f"average and {np.abs(there - want).max():.1e} at most, here by {mean(here - want):.1e} and "
        f"{np.abs(here - want).max():.1e}, from here by {mean(there - here):.1e} and {np.abs(there - here).max():.1e}; "
        f"{equal[0]} answers are JAX's, {equal[1]} those of here"
    )
    if files.integers(artifact):
        return mean(there - want) < 1.5 * mean(here - want) + rounding.EPS * most
    return bool(np.abs(there - want).max() < 4 * rounding.ROUNDINGS * rounding.EPS * most)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="tests.slow.arm", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packages", default="", help="folder of the unpacked wheels")
    parser.add_argument("--model", action="append", default=[], type=pathlib.Path, help="DIR/checkpoints/NAME")
    parser.add_argument("--images", default="", help="a data source, for these")
    parser.add_argument("--count", type=int, default=100, help="how many of them, the first ones")
    given, command = parser.parse_known_args(argv)
    if bool(given.model) != bool(given.images):
        parser.error("--model and --images go together")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        right, wanted = ({}, {}) if given.model else written(folder)
        models_of = [artifacts.load_artifact(path) for path in given.model]
        seen = [files.prepared(one, given.images, given.count)[0] for one in models_of]
        here = [real(folder, one, images) for one, images in zip(models_of, seen, strict=True)]
        (folder / "there.py").write_text(THERE)
        arguments = [*command, str(folder / "there.py"), name, *([given.packages] if given.packages else [])]
        environment = {"LC_ALL": "C", "OPENBLAS_NUM_THREADS": "1"}  # Nothing of this machine's processor.
        subprocess.run(arguments, check=True, env=environment)
        good = [compare(folder, right, wanted)]
        good += [compare_real(folder, *of_one) for of_one in zip(models_of, seen, here, strict=True)]
        sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
