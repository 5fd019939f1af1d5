"""Preprocessing against timm's evaluation transform written out, and augmentations against what they promise."""

import functools
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy import stats

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import augment, preprocess
from lraqvit_jax.data.preprocess import Preprocess

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
        ({"std": (0.5, 1e-30, 0.5)}, "nothing of a picture is left"),
        ({"mean": (0.5, 1e30, 0.5)}, "nothing of a picture is left"),
    ],
)
def test_what_makes_no_sense_is_named(fields, says):
    with pytest.raises(UserError, match=f"preprocess.*{says}|{says}"):
        Preprocess(**{"size": 32, **fields})


# --- augmentation ---

MOVES = "random_affine(10, 0.1, 0.9, 1.1, 5) | random_crop(2) | flip_lr(0.5)"
EVERYTHING = f"random_resized_crop | {MOVES} | color_jitter | rand_augment | random_erasing"
SMALL = Preprocess(12, 0.9)


def run(text, image, rng):
    """`text` on an image that is of the model's size already, as an array."""
    assert image.width == image.height
    return np.asarray(augment.parse(text)(image, Preprocess(image.width), rng))


class Fixed:
    """A generator whose draws are the upper ends of their ranges."""

    @staticmethod
    def uniform(low, high, size=None):
        del low
        return high if size is None else np.full(size, high)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_no_augmentation_is_the_preprocessing(rng, mode):
    image = picture(rng, 40, 25, mode)
    got = augment.parse("")(image, SMALL, rng)
    assert np.array_equal(np.asarray(got), np.asarray(SMALL.geometry(image)))


@pytest.mark.parametrize(
    "text",
    [
        "random_affine(0, 0, 1, 1)",
        "random_affine(0, 0, 1, 1, 0)",
        "random_crop(0)",
        "flip_lr(0)",
        " flip_lr(0) | ",
        "random_resized_crop(1, 1, 1, 1)",
        "color_jitter(0, 0, 0)",
        "random_erasing(0)",
        "rand_augment(0)",
    ],
)
def test_operations_of_no_strength_leave_every_pixel(rng, text):
    image = picture(rng, 9, 9)
    assert np.array_equal(run(text, image, rng), np.asarray(image))


@pytest.mark.parametrize("text", [EVERYTHING, *augment.OPERATIONS])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("shape", [(9, 7), (12, 12), (50, 80), (1, 30)], ids=str)
def test_any_photograph_becomes_rgb_of_the_models_size(rng, text, mode, shape):
    result = augment.parse(text)(picture(rng, *shape, mode), SMALL, rng)
    assert (result.size, result.mode) == ((12, 12), "RGB")


@pytest.mark.parametrize("text", [MOVES, EVERYTHING])
def test_the_generator_decides(rng, text):
    image = picture(rng, 16, 16)
    one, same, other = (run(text, image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("text", [MOVES, EVERYTHING])
def test_the_original_stays_as_it_was(rng, text):
    image = picture(rng, 16, 16)
    before = np.asarray(image).copy()
    for _ in range(20):
        run(text, image, rng)
    assert np.array_equal(np.asarray(image), before)


def test_flipping_mirrors_left_and_right_at_its_probability(rng):
    image = picture(rng, 9, 9)
    assert np.array_equal(run("flip_lr(1)", image, rng), np.asarray(image)[:, ::-1])
    flipped = [not np.array_equal(run("flip_lr(0.3)", image, rng), np.asarray(image)) for _ in range(300)]
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
    pipeline(image, SMALL, rng)
    assert calls == [("random_crop", 3), ("flip_lr", 0.25), ("random_crop", 0)]


# --- random resized crops ---


def coordinates(width, height):
    """An image whose first two channels are x and y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def boxes(shape, count, *numbers):
    """Left, top, width, height of crops of an image of at most 256 x 256."""
    image, rng = coordinates(*shape), np.random.default_rng(0)
    found = []
    for _ in range(count):
        crop = augment.random_resized_crop(image, rng, *numbers)
        (left, top, _), (right, bottom, _) = crop.getpixel((0, 0)), crop.getpixel((crop.width - 1, crop.height - 1))
        assert (right - left + 1, bottom - top + 1) == crop.size  # a window of the original, not resampled
        found.append((left, top, *crop.size))
    return np.array(found).T


def test_boxes_are_uniform_in_area_log_uniform_in_ratio_and_anywhere():
    left, top, width, height = boxes((250, 200), 2000, 0.1, 0.4, 0.6, 1.5)  # all of them fit
    share, log_ratio = width * height / (250 * 200), np.log(width / height)
    assert stats.kstest(share, stats.uniform(0.1, 0.3).cdf).pvalue > 0.01
    span = np.log(1.5 / 0.6)
    assert stats.kstest(log_ratio, stats.uniform(np.log(0.6), span).cdf).pvalue > 0.01
    assert abs(np.corrcoef(share, log_ratio)[0, 1]) < 0.06
    for start, side, length in ((left, width, 250), (top, height, 200)):
        assert start.min() == 0
        assert (start + side).max() == length
        place = (start + 0.5) / (length - side + 1)  # uniform, but for whole pixels
        assert stats.kstest(place, stats.uniform.cdf).pvalue > 0.01


def test_the_default_box_is_timms():
    """8% to 100% of the area; three to four either way."""
    _, _, width, height = boxes((240, 240), 1000)
    share, ratio = width * height / 240**2, width / height
    assert 0.075 < share.min() < 0.1
    assert 0.9 < share.max() <= 1
    assert 0.7 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.4


@pytest.mark.parametrize(
    ("shape", "box"),
    [((201, 21), (86, 0, 28, 21)), ((21, 201), (0, 86, 21, 28)), ((30, 30), (0, 0, 30, 30))],
    ids=["wide", "tall", "square"],
)
def test_where_no_box_fits_it_is_the_centre_at_the_nearest_ratio(shape, box):
    assert np.array_equal(boxes(shape, 20, 1, 1), np.repeat(box, 20).reshape(4, 20))


@pytest.mark.parametrize("name", sorted(preprocess.INTERPOLATIONS))
def test_the_crop_is_resized_as_the_model_asks_and_replaces_the_central_one(rng, name):
    """The whole image, squashed: neither crop_pct nor the sides' ratio counts."""
    image = picture(rng, 40, 30)
    got = augment.parse("random_resized_crop(1, 1, 1.3333333, 1.3333334)")(image, Preprocess(16, 0.5, name), rng)
    want = image.resize((16, 16), preprocess.INTERPOLATIONS[name])
    assert np.array_equal(np.asarray(got), np.asarray(want))


# --- colours and erasing ---


def blend(low, image, factor):
    """PIL truncates after clipping."""
    return np.clip(low + factor * (np.asarray(image, np.float64) - low), 0, 255)


def test_each_colour_factor_is_its_formula(rng):
    """Alone, at its upper end; grey is ITU-R 601's."""
    pixels = np.asarray(picture(rng, 20, 20)).astype(np.float64)
    grey = np.asarray(Image.fromarray(pixels.astype(np.uint8)).convert("L"), np.float64)
    assert np.abs(grey - pixels @ (0.299, 0.587, 0.114)).max() <= 1
    lows = {"1, 0, 0": 0.0, "0, 1, 0": np.floor(grey.mean() + 0.5), "0, 0, 1": grey[..., None]}
    for numbers, low in lows.items():
        seen = [
            run(f"color_jitter({numbers})", Image.fromarray(pixels.astype(np.uint8)), np.random.default_rng(seed))
            for seed in range(40)
        ]
        factors = []
        for result in seen:
            errors = [np.abs(blend(low, pixels, factor) - result).max() for factor in np.linspace(0, 2, 401)]
            assert min(errors) < 2
            factors.append(np.linspace(0, 2, 401)[np.argmin(errors)])
        assert stats.kstest(factors, stats.uniform(0, 2).cdf).pvalue > 0.01


class Upper(np.random.Generator):
    """Uniform draws are the upper ends of their ranges; the rest is random."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return Fixed.uniform(low, high, size)


def test_the_colour_factors_come_in_every_order(rng):
    image = picture(rng, 16, 16)
    factors = {ImageEnhance.Brightness: 1.2, ImageEnhance.Contrast: 1.5, ImageEnhance.Color: 1.8}

    def in_order(kinds):
        return functools.reduce(lambda image, kind: kind(image).enhance(factors[kind]), kinds, image).tobytes()

    seen = {run("color_jitter(0.2, 0.5, 0.8)", image, Upper(np.random.PCG64(seed))).tobytes() for seed in range(60)}
    assert seen == {in_order(kinds) for kinds in itertools.permutations(factors)}


def erased(text, count, size=100):
    """Masks of what was erased of a black image, and the noise that took its place."""
    rng, black = np.random.default_rng(0), Image.new("RGB", (size, size))
    results = np.stack([run(text, black, rng) for _ in range(count)])
    return results.any(-1), results


def test_erasing_is_a_box_of_uniform_area_full_of_noise():
    masks, results = erased("random_erasing(1, 0.05, 0.25)", 400)
    rows, columns = masks.any(2), masks.any(1)
    heights, widths = rows.sum(1), columns.sum(1)
    assert masks.sum((1, 2)) == pytest.approx(heights * widths, abs=1)  # full, but for a black pixel in 256^3
    assert stats.kstest(heights * widths / 100**2, stats.uniform(0.05, 0.2).cdf).pvalue > 0.01
    log_ratio = np.log(heights / widths)
    assert stats.kstest(log_ratio, stats.uniform(np.log(0.3), -2 * np.log(0.3)).cdf).pvalue > 0.01
    assert np.all(rows.any(0)) and np.all(columns.any(0))
    noise = results[masks].astype(np.float64)
    assert stats.chisquare(np.bincount(noise.astype(int).ravel(), minlength=256)).pvalue > 0.001
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.01


def test_erasing_has_its_probability_and_leaves_the_rest(rng):
    masks, _ = erased("random_erasing(0.25)", 1000, 20)
    assert 0.2 < np.mean(masks.any((1, 2))) < 0.3
    image = picture(rng, 50, 50)
    changed = (run("random_erasing(1, 0.1, 0.2)", image, rng) != np.asarray(image)).any(-1)
    assert 0.08 < changed.mean() < 0.22


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
        ("flip_lr|random_resized_crop", "random_resized_crop after another operation"),
        ("random_resized_crop|random_resized_crop(0.5)", "random_resized_crop after another operation"),
    ],
)
def test_text_that_is_no_augmentation_is_named(text, says):
    with pytest.raises(UserError, match=says):
        augment.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "random_crop(-3)",
        "random_affine(10, 0.1, 1.2, 0.9)",
        "random_affine(10, 0.1, 0, 0)",
        "random_resized_crop(0, 1)",
        "random_resized_crop(0.5, 0.2)",
        "random_resized_crop(0.5, 1.5)",
        "random_resized_crop(0.1, 1, 0)",
        "random_resized_crop(0.1, 1, 2, 1)",
        "color_jitter(0.4, -0.1)",
        "random_erasing(0.001, 0, 0.1)",
        "random_erasing(0.001, 0.5, 0.1)",
        "rand_augment(1.5)",
        "rand_augment(-1)",
        "rand_augment(2, 11)",
        "rand_augment(2, 9, -1)",
    ],
)
def test_numbers_that_would_stop_the_input_pipeline_are_refused_when_read(text):
    with pytest.raises(UserError, match="augment"):
        augment.parse(text)
