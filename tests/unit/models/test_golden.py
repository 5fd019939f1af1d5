"""Logits that PyTorch gave once, to 1e-4. tests/golden/make.py made the files, tests/parity compares afresh."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from lraqvit_jax import weights
from tests.golden import recipe

FILES = sorted((pathlib.Path(__file__).parents[2] / "golden").glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_logits_are_those_that_pytorch_gave(path, tmp_path):
    with np.load(path) as golden:
        want, fields = golden["logits"], json.loads(str(golden["recipe"]))
    values = recipe.weights(fields["shapes"], fields["seed"], fields["stream"])
    images = recipe.images(**fields["images"])
    drawn = recipe.total([*values.values(), images])
    assert drawn == pytest.approx(fields["sum"], rel=1e-6), "NumPy draws other numbers: python -m tests.golden.make"
    safetensors.numpy.save_file(values, tmp_path / fields["file"])
    if fields["config"]:
        (tmp_path / "config.json").write_text(json.dumps(fields["config"]))
    elif path.stem.startswith("swin"):  # No tensor tells the image size of a Swin.
        size = fields["images"]["size"]
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, size, size]}}))
    kind, name = ("huggingface", tmp_path) if fields["config"] else ("timm", tmp_path / fields["file"])
    model, params, preprocess = weights.load(f"{kind}:{name}")
    assert preprocess.size == fields["images"]["size"]
    got = np.asarray(jax.jit(model.apply)({"params": params}, images))
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_there_are_golden_files_and_they_are_small():
    assert len(FILES) >= 5
    assert sum(path.stat().st_size for path in FILES) < 100_000
