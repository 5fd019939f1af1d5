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
    SPLITS = {"train": (0, 1500), "test": (1500, 1797)}
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(*rows) for name, rows in self.SPLITS.items()}

    def _generate_examples(self, start, stop):
        from sklearn.datasets import load_digits

        data = load_digits()
        for index in range(start, stop):
            png = io.BytesIO()
            Image.fromarray((data.images[index] * 15).astype(np.uint8)).save(png, "PNG")
            png.seek(0)
            yield index, {"image": png, "label": data.target[index]}

class OnlyTraining(TinyDigits):
    SPLITS = {"train": (0, 50)}

class OnlyTest(TinyDigits):
    SPLITS = {"test": (0, 50), "extra": (50, 60)}

class AllThree(TinyDigits):
    SPLITS = {"train": (0, 50), "test": (50, 70), "validation": (70, 80)}

OnlyTraining(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
OnlyTest(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
AllThree(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
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
for name, role, words in (
    ("only_training", "eval", ("no split validation or test for data.eval, only train", "only_training@train[90%:]")),
    ("only_test", "train", ("no split train for data.train, only test, extra", "tfds:only_test@test[90%:]")),
    ("only_test", "calibration", ("no split train for data.calibration",)),
):
    try:
        sources.load(f"tfds:{name}", role, sys.argv[1])
        raise AssertionError(f"{name} was read for {role}")
    except UserError as error:
        assert all(word in str(error) for word in words), error
sizes = {
    ("only_training", "train"): 50, ("only_training@train", "eval"): 50, ("only_training@train[90%:]", "eval"): 5,
    ("only_test", "eval"): 50, ("only_test@test", "train"): 50, ("all_three", "eval"): 10, ("all_three", "train"): 50,
}
for (name, role), size in sizes.items():
    assert len(sources.load(f"tfds:{name}", role, sys.argv[1])) == size, (name, role)
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
