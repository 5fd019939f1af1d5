"""A folder where the names that the pages use mean small things, so that a command is run just as it stands there.

A timm checkpoint of a ViT of 32 features and 12 pixels, a dozen photographs, and `configs/` with few steps.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import safetensors.numpy
from PIL import Image

from tests.docs.blocks import ROOT
from tests.integration import command
from tests.unit import numpy_vit

CONFIG = """
import importlib.util
spec = importlib.util.spec_from_file_location("real", {path!r})
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)


def get_config():
    config = real.get_config()
    config.update(steps=2, batch_size=8, eval_batch_size=14, checkpoint_every=2, log_every=1)
    config.plan.update(multiple=2, head_multiple=2, measured_images=4, rounds=1)
    config.factorize.calibration_images = 8
    config.quant.calibration_images = 4
    config.export.update(artifacts=("int8_per_token_dynamic", "int8_per_token_dynamic_7"), platforms=("cpu",))
    return config
"""
"""`configs/vit_tiny_small_data.py`, small."""
SIZE, CLASSES = 12, 7
WORDS = {"PHOTO...": "photo.jpg", "DIR/export/NAME": "DIR/export/int8_per_token_dynamic_7"}
"""What a reader puts in, beside the folders DIR, PHOTOS and LABELLED."""


def make(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("examples", "launch", "tests", "lraqvit_jax"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.py"):
        (folder / "configs" / path.name).symlink_to(path)
    small = folder / "configs" / "vit_tiny_small_data.py"
    small.unlink()
    small.write_text(CONFIG.format(path=str(ROOT / "configs" / small.name)))
    tensors = numpy_vit.random_tensors(rng, dim=32, depth=2, patch=4, side=SIZE // 4, classes=CLASSES)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "vit_tiny_patch16_224.safetensors")
    for index in range(2 * CLASSES):
        image = Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8))
        for path in (folder / "PHOTOS" / f"{index}.png", folder / "LABELLED" / f"{index % CLASSES}" / f"{index}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    image.save(folder / "photo.jpg")


def put_in(text: str) -> str:
    """A command or snippet with what a reader puts in."""
    for pattern, value in WORDS.items():
        text = text.replace(pattern, value)
    return text


def environment() -> dict[str, str]:
    """Of a process that uses this checkout, one device, and the programs that the tests have compiled."""
    return os.environ | command.compiled() | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": command.xla_flags(devices=1)}


def run(folder: pathlib.Path, words: list[str], **options) -> subprocess.CompletedProcess:
    """Runs a command of Python's in the folder; one of this package's with the options of `command.run`."""
    flag, name, *rest = [put_in(word) for word in words[1:]]
    if flag == "-m" and name.startswith("lraqvit_jax."):
        return command.run(*rest, module=name.removeprefix("lraqvit_jax."), cwd=folder, check=True, **options)
    words = [sys.executable, flag, name, *rest]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    return command.checked(done, check=True)
