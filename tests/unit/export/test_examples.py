"""What users run without this package, where it cannot be imported, against the package's own answers."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import sklearn.datasets
from PIL import Image

from lraqvit_jax.export import litert, stablehlo
from lraqvit_jax.export import onnx as export
from tests.unit.export.test_onnx import artifact

ROOT = pathlib.Path(__file__).parents[3]
PHOTO = pathlib.Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
ONNXRUNTIME = ("numpy", "PIL", "onnxruntime")
LITERT = ("numpy", "PIL", "ai_edge_litert", "flatbuffers", "ml_dtypes", "google", "backports")
JAX = ("numpy", "flatbuffers", "jax", "jaxlib", "ml_dtypes", "opt_einsum", "scipy")


def alone(packages, folder, *command):
    """Runs Python where only these packages and the standard library can be imported."""
    for name in packages:
        if not (folder / name).exists():
            (folder / name).symlink_to(pathlib.Path(importlib.util.find_spec(name).submodule_search_locations[0]))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-S", *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def classify(folder, *arguments):
    return alone(ONNXRUNTIME, folder, ROOT / "examples" / "classify.py", *arguments)


def answers(one, path, image):
    """Five lines, from the package's preprocess and ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"images": one.preprocess(image)[None]})[0][0]
    shares = np.asarray(jax.nn.softmax(logits))
    names = one.meta["class_names"] or [f"class {index}" for index in range(len(logits))]
    return [f"  {shares[index]:6.1%}  {names[index]}" for index in np.argsort(-logits)[:5]]


def test_classify(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8, 8, {"granularity": "per_token_dynamic"})
    named = dataclasses.replace(one, meta={**one.meta, "class_names": [f"kind of bird {index}" for index in range(10)]})
    photo, turned, exif = Image.open(PHOTO), tmp_path / "turned.png", Image.Exif()
    exif[274] = 6  # As a phone that was held upright says it.
    photo.save(turned, exif=exif)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    for each in (one, named):
        export.export(each, tmp_path / "one.onnx")
        done = classify(tmp_path, tmp_path / "one.onnx", PHOTO, turned)
        assert done.returncode == 0, done.stderr
        want = [str(PHOTO), *answers(each, tmp_path / "one.onnx", photo)]
        assert done.stdout.splitlines() == [*want, str(turned), *answers(each, tmp_path / "one.onnx", upright)]


def test_classify_runs_stablehlo_with_jax_and_flatbuffers(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8)
    (tmp_path / "one.json").write_text(json.dumps({"preprocess": one.preprocess.to_json(), "class_names": None}))
    stablehlo.export(one.model, one.params, 8, ["cpu"], tmp_path / "one.stablehlo")
    for name in ("one.mlirbc", "one.mlir"):
        stablehlo.export_module(one.model, one.params, 8, "cpu", tmp_path / name)
    export.export(one, tmp_path / "one.onnx")
    want = [str(PHOTO), *answers(one, tmp_path / "one.onnx", Image.open(PHOTO))]
    for name in ("one.stablehlo", "one.mlirbc", "one.mlir"):
        done = alone((*JAX, "PIL"), tmp_path, ROOT / "examples" / "classify.py", tmp_path / name, PHOTO)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == want


@pytest.mark.skipif(bool(litert.missing()), reason=litert.missing())
def test_classify_runs_a_litert_file(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8)
    export.export(one, tmp_path / "one.onnx")
    litert.export(one, tmp_path / "one.tflite")
    want = [str(PHOTO), *answers(one, tmp_path / "one.onnx", Image.open(PHOTO))]
    done = alone(LITERT, tmp_path, ROOT / "examples" / "classify.py", tmp_path / "one.tflite", PHOTO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == want


def test_mistakes_are_one_sentence(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8)
    made = export.export(one, tmp_path / "one.onnx")
    del made.metadata_props[:]
    onnx.save(made, tmp_path / "other.onnx")
    (tmp_path / "cut.jpg").write_bytes(PHOTO.read_bytes()[:5000])
    for arguments, said in [
        ([tmp_path / "one.onnx"], "name a model and a photo"),
        ([tmp_path / "none.onnx", PHOTO], "none.onnx cannot be read as an ONNX model"),
        ([tmp_path / "one.tflite", PHOTO], "one.tflite needs a package that is not here"),
        ([PHOTO, PHOTO], "china.jpg cannot be read as an ONNX model"),
        ([tmp_path / "other.onnx", PHOTO], "other.onnx does not say how to prepare an image"),
        ([tmp_path / "one.onnx", tmp_path / "one.onnx"], "one.onnx cannot be read as an image"),
        ([tmp_path / "one.onnx", tmp_path / "cut.jpg"], "cut.jpg cannot be read as an image"),
    ]:
        done = classify(tmp_path, *arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not done.stdout


def test_the_pages_run_stablehlo_with_jax_and_flatbuffers_alone(rng, tmp_path):
    one, images = artifact(rng, "vit_pico", 8, 8, {"granularity": "per_token_dynamic"})
    stablehlo.export(one.model, one.params, 8, ["cpu"], tmp_path / "one.stablehlo")
    (tmp_path / "one.json").write_text("{}")
    np.save(tmp_path / "images.npy", images)
    want = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))
    for page in (ROOT / "docs" / "howto" / "onnxruntime.md", ROOT / "examples" / "README.md"):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        (code,) = (block for block in blocks if "jax.export" in block)
        code = "import numpy\nimages = numpy.load('images.npy')\n" + re.sub(r"DIR/export/\w+", "one", code)
        code += "numpy.save('logits.npy', predict(images))"
        done = alone(JAX, tmp_path, "-c", code)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(np.load(tmp_path / "logits.npy"), want)
