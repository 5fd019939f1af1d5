"""How images are prepared: what a card says, what timm publishes under a name, and what is assumed and said aloud."""

import json

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image

from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.weights import cards, hub, processors
from tests.unit import numpy_swin, numpy_vit
from tests.unit.weights.test_big_vision import BIG_VISION, flax_names
from tests.unit.weights.test_weights import transformers_names

PICO = {"dim": 32, "depth": 2, "patch": 4, "side": 2, "classes": 5}
HALF, MEAN, STD = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.fixture
def tensors(rng):
    return numpy_vit.random_tensors(rng, **PICO)


def timm_file(folder, tensors, name, card=None):
    np.savez(folder / f"{name}.npz", **tensors)
    if card is not None:
        (folder / "config.json").write_text(json.dumps(card))
    return f"timm:{folder / name}.npz"


@pytest.mark.parametrize(
    ("name", "crop", "mean", "std"),
    [
        # `timm.get_pretrained_cfg(NAME)` of timm 1.0.
        ("vit_tiny_patch16_224", 0.9, HALF, HALF),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 0.9, HALF, HALF),
        ("vit_base_patch8_224.augreg2_in21k_ft_in1k", 0.9, HALF, HALF),
        ("vit_large_patch32_384.orig_in21k_ft_in1k", 1.0, HALF, HALF),
        ("vit_base_patch16_384", 1.0, HALF, HALF),
        ("deit_tiny_patch16_224", 0.9, MEAN, STD),
        ("deit_base_distilled_patch16_384.fb_in1k", 1.0, MEAN, STD),
        ("deit3_small_patch16_224.fb_in1k", 0.9, MEAN, STD),
        ("deit3_small_patch16_224.fb_in22k_ft_in1k", 1.0, MEAN, STD),
        ("deit3_large_patch16_384.fb_in1k", 1.0, MEAN, STD),
        ("swin_tiny_patch4_window7_224.ms_in22k_ft_in1k", 0.9, MEAN, STD),
        ("swin_base_patch4_window12_384", 1.0, MEAN, STD),
        ("swin_base_patch4_window12_384_22k", 1.0, MEAN, STD),
        ("vit_base_patch16_224.dino", 0.9, MEAN, STD),
        ("deit3_small_patch16_224_in21ft1k", 1.0, MEAN, STD),
    ],
)
def test_published_names_say_it_all(tmp_path, capsys, tensors, name, crop, mean, std):
    want = {"crop_pct": crop, "interpolation": "bicubic", "mean": mean, "std": std}
    row = cards.published(name)
    assert {field: row[field] for field in want} == {**want, "mean": list(mean), "std": list(std)}
    if not name.startswith("swin"):
        assert weights.read(timm_file(tmp_path, tensors, name)).preprocess == Preprocess(8, **want)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vit_base_patch16_224_dino2", HALF, HALF),
        ("vit_base_patch16_224_miil", HALF, HALF),
        ("vit_mine", HALF, HALF),
        ("deit3_small_patch16", MEAN, STD),
        ("deit_finetuned", MEAN, STD),
    ],
)
def test_what_is_assumed_of_other_names_is_said_once(tmp_path, capsys, tensors, name, mean, std):
    source = timm_file(tmp_path, tensors, name)
    for _ in range(2):
        assert weights.read(source).preprocess == Preprocess(8, 0.9, "bicubic", mean, std)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {source} does not say how its images are prepared.")
    assert f"crop_pct 0.9, interpolation bicubic, mean {mean}, std {std}. If that is wrong, put timm's config" in line


def test_only_what_a_card_leaves_open_is_assumed(tmp_path, capsys, tensors):
    card = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1], "crop_pct": 0.95, "interpolation": None}
    source = timm_file(tmp_path, tensors, "mine", {"pretrained_cfg": card})
    want = Preprocess(8, 0.95, "bicubic", (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    assert weights.read(source).preprocess == want
    (line,) = capsys.readouterr().err.splitlines()
    assert "usually have: interpolation bicubic. If" in line
    flat = card | {"interpolation": "bilinear", "architecture": "vit_base_patch16_224"}  # as timm wrote it before 2023
    source = timm_file(tmp_path, tensors, "mine", flat)
    assert weights.read(source).preprocess == Preprocess(8, 0.95, "bilinear", (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"pretrained_cfg": 7}, "pretrained_cfg 7"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode is 'border'"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation is 'random'"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "three numbers"),
    ],
)
def test_a_card_that_cannot_be_honoured_is_refused(tmp_path, tensors, card, words):
    with pytest.raises(UserError, match=words):
        weights.read(timm_file(tmp_path, tensors, "vit_base_patch16_224", card))


def transformers(folder, tensors, fields):
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(value) for name, value in transformers_names(tensors, True).items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "layer_norm_eps": 1e-6}))
    if fields is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return f"huggingface:{folder}"


def test_transformers_weights_without_a_preprocessor_say_what_is_assumed(tmp_path, capsys, tensors):
    source = transformers(tmp_path, tensors, None)
    assert weights.read(source).preprocess == Preprocess(8, 1.0, "bilinear", HALF, HALF, "squash")
    (line,) = capsys.readouterr().err.splitlines()
    assert "crop_pct 1.0, interpolation bilinear, mean" in line
    assert "put preprocessor_config.json beside it" in line


GIVEN = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"resample": 3}, Preprocess(8, 1.0, "bicubic", *GIVEN, "squash")),
        ({"resample": 1}, Preprocess(8, 1.0, "lanczos", *GIVEN, "squash")),
        ({"resample": 0, "do_rescale": True}, Preprocess(8, 1.0, "nearest", *GIVEN, "squash")),
        ({}, Preprocess(8, 1.0, "bilinear", *GIVEN, "squash")),
        (
            {"image_processor_type": "DeiTImageProcessor", "do_center_crop": False},
            Preprocess(8, 1.0, "bicubic", *GIVEN, "squash"),
        ),
        ({"image_mean": None, "image_std": None}, Preprocess(8, 1.0, "bilinear", HALF, HALF, "squash")),
        ({"do_normalize": False}, Preprocess(8, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "squash")),
        ({"do_resize": False, "size": 77}, Preprocess(8, 1.0, "bilinear", *GIVEN, "squash")),
        ({"size": 10, "do_center_crop": True, "crop_size": 8}, Preprocess(8, 0.8, "bilinear", *GIVEN, "squash")),
        (
            {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            Preprocess(8, 0.8, "bilinear", *GIVEN),
        ),
        (
            {"image_processor_type": "BitImageProcessor", "size": 16, "crop_size": 8},
            Preprocess(8, 0.5, "bicubic", *GIVEN),
        ),
    ],
)
def test_fields_of_a_preprocessor_are_honoured(tmp_path, capsys, tensors, fields, want):
    card = STATISTICS | {"size": {"height": 8, "width": 8}, "rescale_factor": 0.00392156862745098} | fields
    assert weights.read(transformers(tmp_path, tensors, card)).preprocess == want
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fields", "pixel"),
    [
        ({"do_normalize": False}, [1, 0, 0.2]),
        ({"do_normalize": False, "do_rescale": False}, [255, 0, 51]),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": [1.0, 2.0, 1.0]}, [1, -0.5, -0.6]),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, [1, -1, -0.6]),
    ],
)
def test_any_scale_of_pixels_is_honoured(tmp_path, tensors, fields, pixel):
    preprocess = weights.read(transformers(tmp_path, tensors, STATISTICS | {"size": 8} | fields)).preprocess
    np.testing.assert_allclose(preprocess(Image.new("RGB", (8, 8), (255, 0, 51)))[0, 0], pixel, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"resample": 6}, "resample 6"),
        ({"resample": [3]}, r"resample \[3\]"),
        ({"resample": "bicubic"}, "resample 'bicubic'"),
        ({"rescale_factor": 0}, "rescale_factor of 0"),
        ({"do_center_crop": True, "size": 224, "crop_size": 256}, "crops 256 pixels out of 224"),
        ({"do_center_crop": True, "size": 224}, "crop_size None"),
        ({"size": {"height": 8, "width": 16}}, "square"),
        ({"size": {"shortest_edge": 8}}, "no image has a fixed size"),
        ({"size": {"longest_edge": 8}}, "longest_edge"),
        ({"size": 16}, "8 x 8 pixels and preprocessor_config.json makes images of 16"),
        ({"do_pad": True}, "do_pad = True"),
        ({"do_sharpen": True}, "do_sharpen = True, a field that is not known"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"do_resize": False, "do_center_crop": True}, "without resizing"),
    ],
)
def test_fields_of_a_preprocessor_that_cannot_be_honoured_are_refused(tmp_path, tensors, fields, words):
    with pytest.raises(UserError, match=words):
        weights.read(transformers(tmp_path, tensors, STATISTICS | {"size": 8} | fields))


def test_the_preprocessor_comes_from_the_hub_with_the_weights(tmp_path, monkeypatch):
    asked = []

    def download(repository, file, revision):
        asked.append(file)
        if file == "absent.json":
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    path = hub.find("somebody/something", ("model.safetensors",), ("absent.json", "preprocessor_config.json"))
    assert path == tmp_path / "model.safetensors"
    assert set(asked) == {"config.json", "absent.json", "preprocessor_config.json", "model.safetensors"}


def test_big_vision_says_how_it_crops_without_being_asked(tmp_path, capsys, tensors):
    np.savez(tmp_path / "B_16.npz", **flax_names(tensors, BIG_VISION))
    # resize_small(256)|central_crop(224)
    assert weights.read(f"big_vision:{tmp_path}/B_16.npz").preprocess == Preprocess(
        8, 224 / 256, "bilinear", HALF, HALF
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "usually have: crop_pct 0.875, interpolation bilinear. If that is wrong, set data.crop_pct" in line


def test_a_swin_of_a_size_that_nobody_says(tmp_path, capsys):
    shapes = numpy_swin.shapes(dim=16, depths=(2, 2), heads=(2, 4), patch=1, window=7, side=224, classes=7)
    source = timm_file(tmp_path, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, "swin")
    assert weights.read(source).preprocess.size == 224
    preparation, size = capsys.readouterr().err.splitlines()
    assert "does not tell its image size. Assumed is that of the published models with windows of 7: 224." in size
    assert f"mean {MEAN}, std {STD}" in preparation


def test_the_numbers_of_interpolations_are_those_of_pillow():
    for number, name in processors.RESAMPLE.items():
        assert Image.Resampling(number).name.lower() == name
