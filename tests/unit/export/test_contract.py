"""What an exported file says of itself is what it takes and gives, and is read back."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
from PIL import Image

from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.export import onnx as export
from lraqvit_jax.export import safetensors as tensors
from lraqvit_jax.export.contract import contract
from tests.unit.export.test_examples import answers, classify
from tests.unit.export.test_onnx import artifact

NAMES = [f"kind {index}" for index in range(10)]


def named(rng, *arguments):
    one, _ = artifact(rng, "vit_pico", 8, *arguments)
    one.meta["class_names"] = NAMES
    return one


def test_every_file_says_what_it_takes(rng, tmp_path):
    one = named(rng)
    export.export(one, tmp_path / "one.onnx")
    tensors.save(one, tmp_path / "one.safetensors", "expanded")
    session = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"))
    with safetensors.safe_open(tmp_path / "one.safetensors", "numpy") as file:
        of_files = [session.get_modelmeta().custom_metadata_map, file.metadata()]
    for said in of_files:
        assert {name: json.loads(said[name]) for name in contract(one)} == contract(one)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    said = contract(one)
    assert (said["input"]["name"], said["input"]["shape"]) == (image.name, image.shape)
    assert (said["output"]["name"], said["output"]["shape"]) == (logits.name, logits.shape)
    assert image.type == f"tensor({said['input']['dtype'].removesuffix('32')})"


def test_values_of_the_contract_are_those_that_preprocess_gives(rng):
    prepare = Preprocess(8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    want = (pixels / 255 - np.array(prepare.mean)) / np.array(prepare.std)
    np.testing.assert_allclose(prepare(Image.fromarray(pixels)), want, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 8])
def test_a_file_for_timm_is_read_back_with_all_that_belongs_to_it(rng, tmp_path, rank):
    one = named(rng, rank)
    tensors.save(one, tmp_path / "any name.safetensors", "expanded")
    found = weights.read(f"timm:{tmp_path / 'any name.safetensors'}")
    assert (found.model, found.preprocess, found.class_names) == (one.meta["model"], one.preprocess, NAMES)
    dense = tensors.expanded(one)
    images = rng.standard_normal((3, 8, 8, 3)).astype(np.float32)
    want = dense.model.apply({"params": dense.params}, images)
    model, params, _ = weights.load(f"timm:{tmp_path / 'any name.safetensors'}")
    np.testing.assert_allclose(model.apply({"params": params}, images), want, atol=1e-5)


def test_factors_are_refused_with_what_to_do(rng, tmp_path):
    tensors.save(named(rng, 8), tmp_path / "one.safetensors", "factors")
    with pytest.raises(UserError, match=r"low_rank.*export\.safetensors=expanded"):
        weights.read(f"timm:{tmp_path / 'one.safetensors'}")


def modes(rng):
    """One picture in every mode that people have."""
    deep = rng.integers(0, 2**16, (9, 13)).astype(np.uint16)
    pixels = rng.integers(0, 256, (9, 13, 3)).astype(np.uint8)
    colour = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[274] = 6
    clear = colour.quantize(16)
    return {
        "grey16.png": (Image.fromarray(deep), Image.fromarray((deep >> 8).astype(np.uint8)), {}),
        "grey.png": (colour.convert("L"), colour.convert("L"), {}),
        "rgba.png": (colour.convert("RGBA"), colour, {}),
        "palette.png": (clear, clear.convert("RGB"), {}),
        "transparent.png": (clear, clear.convert("RGB"), {"transparency": 3}),
        "bilevel.png": (colour.convert("1"), colour.convert("1"), {}),
        "cmyk.tif": (colour.convert("CMYK"), colour.convert("CMYK").convert("RGB"), {}),
        "turned.png": (colour, colour.transpose(Image.Transpose.ROTATE_270), {"exif": turned}),
    }


def test_a_picture_of_any_mode_has_one_answer(rng, tmp_path):
    """That of the plain picture in `right`, in the example and in `Preprocess`."""
    one = named(rng)
    export.export(one, tmp_path / "one.onnx")
    pictures = modes(rng)
    for name, (picture, _, options) in pictures.items():
        picture.save(tmp_path / name, **options)
    done = classify(tmp_path, tmp_path / "one.onnx", *(tmp_path / name for name in pictures))
    assert done.returncode == 0, done.stderr
    want = []
    for name, (_, right, _) in pictures.items():
        want += [str(tmp_path / name), *answers(one, tmp_path / "one.onnx", right.convert("RGB"))]
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(one.preprocess(opened), one.preprocess(right.convert("RGB")))
    assert done.stdout.splitlines() == want


def test_onnxruntime_s_own_quantizer_takes_a_float_file(rng, tmp_path):
    """As docs/howto/onnxruntime.md says: it takes ONNX's Attention for its own, so the operators are named."""
    from onnxruntime.quantization import quantize_dynamic

    export.export(named(rng), tmp_path / "one.onnx")
    quantize_dynamic(tmp_path / "one.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    got = export.load(tmp_path / "int8.onnx")(images)
    want = export.load(tmp_path / "one.onnx")(images)
    assert np.abs(got - want).max() < 0.5 * np.abs(want).max()
    assert any("Integer" in node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node)
