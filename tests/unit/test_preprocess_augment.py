"""Preprocessing against timm's evaluation transform written out, and augmentations against what they promise."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lraqvit_jax.data import augment, preprocess
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.errors import UserError

property_test = settings(max_examples=30, deadline=None, derandomize=True)


def picture(rng, width, height, mode="RGB"):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def timm_transform(image, size, crop_pct, filter_):
    """torchvision's Resize(floor(size / crop_pct)) and CenterCrop(size), as timm composes them."""
    short = math.floor(size / crop_pct)
    width, height = image.size
    if width <= height:
        resized = (short, int(short * height / width))
    else:
        resized = (int(short * width / height), short)
    image = image.resize(resized, filter_)
    left, top = round((resized[0] - size) / 2.0), round((resized[1] - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


# --- Preprocess ---


@pytest.mark.parametrize("shape", [(64, 64), (40, 40), (24, 24), (128, 64), (30, 90)], ids=str)
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("name", sorted(preprocess.INTERPOLATIONS))
def test_geometry_is_timms_where_the_sides_divide(rng, shape, crop_pct, name):
    image = picture(rng, *shape)
    got = Preprocess(32, crop_pct, name).geometry(image)
    want = timm_transform(image, 32, crop_pct, preprocess.INTERPOLATIONS[name])
    assert np.array_equal(np.asarray(got), np.asarray(want))


@property_test
@given(st.integers(8, 80), st.integers(8, 80), st.sampled_from([1.0, 0.95, 0.9, 0.875]))
@example(51, 38, 0.9)  # the longer side is cut to whole pixels, not rounded
def test_geometry_is_timms_for_any_sides(width, height, crop_pct):
    image = picture(np.random.default_rng(width * height), width, height)
    got = Preprocess(24, crop_pct, "bilinear").geometry(image)
    assert got.size == (24, 24)
    want = timm_transform(image, 24, crop_pct, Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5)], ids=str)
def test_any_photograph_gives_the_models_size(rng, shape):
    array = Preprocess(16, 0.875)(picture(rng, *shape))
    assert array.shape == (16, 16, 3)
    assert array.dtype == np.float32


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(rng, mode):
    image = picture(rng, 20, 20, mode)
    got = Preprocess(20)(image)
    want = np.asarray(image.convert("RGB"), np.float64) / 255
    np.testing.assert_allclose(got, (want - 0.5) / 0.5, atol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled(rng):
    image = picture(rng, 28, 28)
    assert np.array_equal(np.asarray(Preprocess(28).geometry(image)), np.asarray(image))


def test_normalization_subtracts_the_mean_and_divides_by_the_deviation(rng):
    """ImageNet's statistics, in float64."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = picture(rng, 12, 12)
    got = Preprocess(12, mean=mean, std=std).normalize(image)
    want = (np.asarray(image, np.float64) / 255 - mean) / std
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_the_original_image_is_left_alone(rng):
    image = picture(rng, 30, 20)
    before = np.asarray(image).copy()
    Preprocess(12, 0.9)(image)
    assert np.array_equal(np.asarray(image), before)


def test_it_comes_back_from_json_as_it_was():
    one = Preprocess(224, 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert preprocess.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": -4}, "size is -4"),
        ({"crop_pct": 0.0}, "crop_pct is 0.0"),
        ({"crop_pct": 1.1}, "crop_pct is 1.1"),
        ({"interpolation": "bicubi"}, "'bicubi'; did you mean 'bicubic'"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"std": (0.5, 0.5)}, "three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "no std may be 0"),
    ],
)
def test_what_makes_no_sense_is_named(fields, says):
    with pytest.raises(UserError, match=f"preprocess.*{says}|{says}"):
        Preprocess(**{"size": 32, **fields})


# --- augmentation ---

EVERYTHING = "random_affine(10, 0.1, 0.9, 1.1, 5) | random_crop(2) | flip_lr(0.5)"


class Fixed:
    """A generator whose draws are the upper ends of their ranges."""

    @staticmethod
    def uniform(low, high, size=None):
        del low
        return high if size is None else np.full(size, high)


def test_no_augmentation_leaves_the_image(rng):
    image = picture(rng, 9, 7)
    assert augment.parse("")(image, rng) is image


@pytest.mark.parametrize(
    "text",
    ["random_affine(0, 0, 1, 1)", "random_affine(0, 0, 1, 1, 0)", "random_crop(0)", "flip_lr(0)", " flip_lr(0) | "],
)
def test_operations_of_no_strength_leave_every_pixel(rng, text):
    image = picture(rng, 9, 7)
    assert np.array_equal(np.asarray(augment.parse(text)(image, rng)), np.asarray(image))


@pytest.mark.parametrize("text", [EVERYTHING, "random_affine", "random_crop", "flip_lr"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_size_and_mode_stay(rng, text, mode):
    result = augment.parse(text)(picture(rng, 9, 7, mode), rng)
    assert (result.size, result.mode) == ((9, 7), mode)


def test_the_generator_decides(rng):
    image, run = picture(rng, 16, 16), augment.parse(EVERYTHING)
    one, same, other = (np.asarray(run(image, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_flipping_mirrors_left_and_right_at_its_probability(rng):
    image = picture(rng, 9, 7)
    flip = augment.parse("flip_lr(1)")
    assert np.array_equal(np.asarray(flip(image, rng)), np.asarray(image)[:, ::-1])
    half = augment.parse("flip_lr(0.3)")
    flipped = [not np.array_equal(np.asarray(half(image, rng)), np.asarray(image)) for _ in range(300)]
    assert 0.2 < np.mean(flipped) < 0.4


def test_a_crop_is_a_window_of_the_padded_image(rng):
    image = picture(rng, 6, 5)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 5, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    seen = {np.asarray(augment.random_crop(image, rng, 2)).tobytes() for _ in range(300)}
    assert seen == windows


def test_a_shift_by_whole_pixels_moves_the_image_and_leaves_black(rng):
    pixels = np.asarray(picture(rng, 8, 8))
    moved = np.asarray(augment.random_affine(Image.fromarray(pixels), Fixed(), 0, 2 / 8, 1, 1))
    assert np.array_equal(moved[2:, 2:], pixels[:-2, :-2])
    assert not moved[:2].any()
    assert not moved[:, :2].any()


@pytest.mark.parametrize("degrees", [90, 180])
@pytest.mark.parametrize("shape", [(8, 8), (9, 9)], ids=str)
def test_a_quarter_turn_about_the_centre_is_a_permutation_of_the_pixels(rng, degrees, shape):
    pixels = np.asarray(picture(rng, *shape))
    turned = np.asarray(augment.random_affine(Image.fromarray(pixels), Fixed(), degrees, 0, 1, 1))
    turns = [np.rot90(pixels, sign * degrees // 90) for sign in (-1, 1)]
    assert any(np.abs(turned.astype(int) - turn).max() <= 1 for turn in turns)


def test_scaling_about_the_centre_keeps_a_symmetric_image_symmetric():
    y, x = np.mgrid[:8, :8] - 3.5
    pixels = (20 * np.minimum(np.abs(x) + 2 * np.abs(y), 12)).astype(np.uint8)
    scaled = np.asarray(augment.random_affine(Image.fromarray(pixels), Fixed(), 0, 0, 1, 2)).astype(int)
    assert not np.array_equal(scaled, pixels)
    assert np.abs(scaled - scaled[::-1, ::-1]).max() <= 1


def test_operations_run_in_the_order_of_the_text(rng, monkeypatch):
    image = picture(rng, 8, 8)
    calls = []
    for name in ("flip_lr", "random_crop"):
        monkeypatch.setitem(
            augment.OPERATIONS, name, lambda image, rng, number=0, name=name: calls.append((name, number)) or image
        )
    pipeline = augment.parse("random_crop(3)|flip_lr(0.25)|random_crop")
    calls.clear()  # parsing tries every operation once
    pipeline(image, rng)
    assert calls == [("random_crop", 3), ("flip_lr", 0.25), ("random_crop", 0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flip_rl", "'flip_rl'; did you mean 'flip_lr'"),
        ("flip_lr(0.5)|turn(3)", "'turn'"),
        ("flip_lr(half)", r"write flip_lr\(probability\)"),
        ("flip_lr('0.5')", r"write flip_lr\(probability\)"),
        ("flip_lr(True)", r"write flip_lr\(probability\)"),
        ("flip_lr(0.5, 0.5)", r"write flip_lr\(probability\)"),
        ("random_crop(1 2)", r"write random_crop\(padding\)"),
        ("random_crop(__import__('os'))", r"write random_crop\(padding\)"),
    ],
)
def test_text_that_is_no_augmentation_is_named(text, says):
    with pytest.raises(UserError, match=says):
        augment.parse(text)


@pytest.mark.parametrize(
    "text", ["random_crop(-3)", "random_affine(10, 0.1, 1.2, 0.9)", "random_affine(10, 0.1, 0, 0)"]
)
def test_numbers_that_would_stop_the_input_pipeline_are_refused_when_read(text):
    with pytest.raises(UserError, match="augment"):
        augment.parse(text)
