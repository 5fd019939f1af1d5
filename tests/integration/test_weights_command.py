"""`python -m lraqvit_jax.weights` through the real command."""

import numpy as np
import pytest
import safetensors.numpy

from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.weights import tensors
from lraqvit_jax.weights.__main__ import describe, parse
from tests.golden import recipe
from tests.integration import command
from tests.unit import numpy_swin, numpy_vit

SWIN = numpy_swin.shapes(dim=16, depths=(2, 2), heads=(2, 4), patch=1, window=4, side=16, classes=7)


def says(*arguments):
    return command.run(*arguments, module="weights")


def test_it_says_what_the_weights_are(rng, tmp_path):
    path = tmp_path / "vit_pico.npz"
    values = numpy_vit.random_tensors(rng, dim=32, depth=2, patch=4, side=2, classes=10)
    np.savez(path, **values)
    result = says(f"timm:{path}")
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert "vit_pico.npz does not say how its images are prepared" in line
    assert "crop_pct 0.9, interpolation bicubic, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)" in line
    summary, rows = result.stdout.split("\n\n")
    count = sum(value.size for value in values.values())
    for words in (
        tensors.sha256(path),
        "vit_pico, 2 blocks",
        "8 x 8",
        f"{count / 1e6:.3f} M in {len(values)} tensors",
        "epsilon 1e-06",
        "exact",
        "crop 0.9, bicubic, mean 0.5 0.5 0.5",
    ):
        assert words in summary
    rows = {line.split()[0]: line.split()[1:] for line in rows.splitlines()[1:]}
    assert len(rows) == len(values)
    shape, dtype, mean, std, largest = rows["blocks_1/mlp/fc1/kernel"]
    kernel = values["blocks.1.mlp.fc1.weight"]
    assert (shape, dtype) == ("32x128", "float32")
    want = [kernel.mean(), kernel.std(), np.abs(kernel).max()]
    np.testing.assert_allclose([float(mean), float(std), float(largest)], want, rtol=0.01)


def test_it_takes_a_size_and_reports_broken_values(tmp_path):
    values = recipe.weights(SWIN, seed=0)
    values["layers.1.blocks.0.mlp.fc2.bias"][:3] = np.nan
    values["norm.weight"][:] = np.inf
    safetensors.numpy.save_file(values, tmp_path / "swin_pico_16.safetensors")
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"input_size": [3, 16, 16]}}')
    result = says(f"timm:{tmp_path}/swin_pico_16.safetensors", "--image_size", 8, "--num_classes", 3)
    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1)
    assert "8 x 8" in result.stdout
    assert "classes        3\n" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("NaN or infinite values in layers_1/blocks_0/mlp/fc2/bias (3 of 32), norm/scale (32 of 32)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["timm:absent.npz", "--image_sise", "8"], ["--image_sise", "did you mean '--image_size'"]),
        (["timm:absent.npz"], ["absent.npz", "does not exist"]),
    ],
    ids=["flag", "absent"],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, words):
    result = says(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [([], "source"), (["timm:x", "--num_classes", "-1"], "-1"), (["x", "--num_classes=a"], "'a'")],
)
def test_arguments_that_make_no_sense_are_named(arguments, word):
    with pytest.raises(UserError, match=word):
        parse(arguments)


def test_the_first_class_names_are_shown(rng, tmp_path):
    path = tmp_path / "vit_pico.npz"
    np.savez(path, **numpy_vit.random_tensors(rng, dim=32, depth=2, patch=4, side=2, classes=7))
    found = weights.read(f"timm:{path}")._replace(class_names=[f"class {index}" for index in range(7)])
    assert "classes        7: class 0, class 1, class 2, class 3, class 4, ...\n" in describe(found)
