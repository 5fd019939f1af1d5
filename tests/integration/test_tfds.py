"""tfds sets through `tfds.data_source`, in a process that never imports TensorFlow."""

import subprocess
import sys

from tests.integration.command import ROOT, digits

MAKE = """
import io
import sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class TinyDigits(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 1500), "test": self._generate_examples(1500, 1797)}

    def _generate_examples(self, start, stop):
        from sklearn.datasets import load_digits

        data = load_digits()
        for index in range(start, stop):
            png = io.BytesIO()
            Image.fromarray((data.images[index] * 15).astype(np.uint8)).save(png, "PNG")
            png.seek(0)
            yield index, {"image": png, "label": data.target[index]}

TinyDigits(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""
CHECK = """
import sys
from lraqvit_jax.data import sources
from lraqvit_jax.base.errors import UserError
train, held_out = (sources.load("tfds:tiny_digits", role, sys.argv[1]) for role in ("train", "eval"))
half = sources.load("tfds:tiny_digits@train[:50%]", "train", sys.argv[1])
assert (len(train), len(held_out), len(half)) == (1500, 297, 750), (len(train), len(held_out), len(half))
assert train.class_names == [str(digit) for digit in range(10)]
example = train[3]
assert example["image"].size == (8, 8) and 0 <= example["label"] < 10
try:
    sources.load("tfds:tiny_digits@nope", "train", sys.argv[1])
    raise AssertionError("an unknown split was accepted")
except UserError as error:
    assert "nope" in str(error)
assert "tensorflow" not in sys.modules
"""


def python(code, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_tfds_set_trains_a_model_without_tensorflow(tmp_path):
    data = str(tmp_path / "data")
    python(MAKE, data)
    python(CHECK, data)
    arguments = ("--config.data.train=tfds:tiny_digits", "--config.data.eval=tfds:tiny_digits")
    few = ("--config.teacher.steps=2", "--stages=teacher", f"--config.data.data_dir={data}")
    result = digits(tmp_path / "work", *arguments, *few, check=True)
    assert "on 297 images" in result.stdout
