"""RandAugment: each operation against NumPy at known levels, and how they are drawn."""

import collections
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from lraqvit_jax.data import rand_augment as module
from lraqvit_jax.data.rand_augment import OPERATIONS, rand_augment

GREY = 128
LUMA = np.array([0.299, 0.587, 0.114])
LEVELS = (0.0, 0.3, 0.5, 0.9, 1.0)


def pixels(seed=0, height=20, width=20):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def apply(name, array, level=0.9, sign=1):
    return np.asarray(OPERATIONS[name](Image.fromarray(array), level, sign)).astype(int)


def test_the_operations_are_timms():
    """https://github.com/huggingface/pytorch-image-models, the increasing variants of RandAugment."""
    names = "auto_contrast equalize invert rotate posterize solarize solarize_add color contrast brightness sharpness"
    assert list(OPERATIONS) == [*names.split(), "shear_x", "shear_y", "translate_x", "translate_y"]


# --- values ---


def test_invert():
    assert np.array_equal(apply("invert", pixels()), 255 - pixels().astype(int))


@pytest.mark.parametrize("level", LEVELS)
def test_posterize_keeps_four_bits_down_to_none(level):
    kept = 4 - math.floor(4 * level)
    step = 2 ** (8 - kept)
    assert np.array_equal(apply("posterize", pixels(), level), pixels().astype(int) // step * step)


@pytest.mark.parametrize("level", LEVELS)
def test_solarize_inverts_from_a_threshold_that_falls(level):
    x = pixels().astype(int)
    want = np.where(x >= 256 - math.floor(256 * level), 255 - x, x)
    assert np.array_equal(apply("solarize", pixels(), level), want)


@pytest.mark.parametrize("level", LEVELS)
def test_solarize_add_brightens_the_darker_half(level):
    x = pixels().astype(int)
    assert np.array_equal(apply("solarize_add", pixels(), level), x + math.floor(110 * level) * (x < 128))


def test_auto_contrast_stretches_every_channel_to_the_full_range():
    x = pixels() // 3 + 20
    low, high = x.min((0, 1)).astype(float), x.max((0, 1)).astype(float)
    assert np.abs(apply("auto_contrast", x) - (x - low) / (high - low) * 255).max() <= 1


def test_equalize_flattens_the_histogram():
    """Many levels of a skewed distribution: the empirical distribution comes close to the uniform one."""
    x = (255 * np.random.default_rng(0).random((128, 128, 3)) ** 3).astype(np.uint8)
    for channel in np.moveaxis(apply("equalize", x), -1, 0):
        shares = np.arange(1, channel.size + 1) / channel.size
        assert np.abs(np.sort(channel.ravel()) / 255 - shares).max() < 0.2  # the darkest level holds 16% of the pixels
    assert np.array_equal(np.argsort(np.unique(x)), np.arange(len(np.unique(x))))
    ordered = apply("equalize", x)[..., 0].ravel()[np.argsort(x[..., 0].ravel(), kind="stable")]
    assert np.all(np.diff(ordered) >= 0)


def degenerate(name, x):
    x = x.astype(np.float64)
    grey = np.round(x @ LUMA)
    if name == "brightness":
        return 0 * x
    if name == "contrast":
        return np.full_like(x, round(grey.mean()))
    if name == "color":
        return np.repeat(grey[..., None], 3, -1)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # PIL's smoothing; the border stays
    smooth = np.stack([ndimage.convolve(channel, kernel) for channel in np.moveaxis(x, -1, 0)], -1)
    inner = np.zeros(x.shape[:2], bool)
    inner[1:-1, 1:-1] = True
    return np.where(inner[..., None], smooth, x)


@pytest.mark.parametrize("name", ["brightness", "contrast", "color", "sharpness"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_enhancements_move_away_from_the_image_in_both_directions(name, level, sign):
    factor = 1 + 0.9 * level * sign
    low = degenerate(name, pixels())
    want = np.clip(low + factor * (pixels() - low), 0, 255)
    assert np.abs(apply(name, pixels(), level, sign) - want).max() < 2.5


@pytest.mark.parametrize("sign", [1, -1])
def test_translation_is_up_to_45_percent_of_the_side(sign):
    """At level 1, 9 of 20 and 18 of 40 pixels."""
    x = pixels(height=40)
    for name, shift in (("translate_x", (0, 9)), ("translate_y", (18, 0))):
        want = ndimage.shift(x, (*(-sign * step for step in shift), 0), order=0, cval=GREY)
        assert np.array_equal(apply(name, x, 1.0, sign), want)


def bilinear(x, rows, columns):
    """Samples where rows and columns say; grey outside, with one pixel of tolerance at the edge left out."""
    return np.stack(
        [
            ndimage.map_coordinates(channel.astype(float), [rows, columns], order=1, cval=np.nan)
            for channel in np.moveaxis(x, -1, 0)
        ],
        -1,
    )


def transforms(level, sign, size):
    """Input coordinates of every output pixel, in PIL's convention of pixel centres at halves."""
    y, x = np.mgrid[:size, :size] + 0.5
    angle, slope, middle = np.radians(30 * level * sign), 0.3 * level * sign, size / 2
    u, v = x - middle, y - middle
    turned = (np.sin(angle) * u + np.cos(angle) * v + middle, np.cos(angle) * u - np.sin(angle) * v + middle)
    return {"shear_x": (y, x + slope * y), "shear_y": (y + slope * x, x), "rotate": turned}


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_shear_and_rotation_resample_bilinearly_and_fill_with_grey(name, level, sign):
    x = pixels(height=24, width=24)
    rows, columns = (where - 0.5 for where in transforms(level, sign, 24)[name])
    got, want = apply(name, x, level, sign), bilinear(x, rows, columns)
    inside = ~np.isnan(want).any(-1)
    assert inside.mean() > 0.6
    assert np.abs(got - want)[inside].max() <= 1.5
    far = (np.minimum(rows, columns) < -1) | (np.maximum(rows, columns) > 24)
    assert np.all(got[far] == GREY)


@pytest.mark.parametrize("name", sorted({*OPERATIONS} - {"auto_contrast", "equalize", "invert", "posterize"}))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_higher_level_is_a_stronger_distortion_and_level_0_is_none(name, sign):
    smooth = ndimage.gaussian_filter(pixels(height=40, width=40).astype(float), (4, 4, 0))
    x = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    distances = [np.abs(apply(name, x, level, sign) - x).mean() for level in (0.0, 0.25, 0.5, 0.75)]
    assert distances[0] == 0
    assert np.all(np.diff(distances) > 0)


# --- draws ---


def drawn(monkeypatch, count, *numbers):
    """What `count` calls applied: (name, level, sign) of every operation, call by call."""
    calls, seen = [], []
    for name in OPERATIONS:
        monkeypatch.setitem(
            module.OPERATIONS, name, lambda image, level, sign, name=name: seen.append((name, level, sign)) or image
        )
    rng, image = np.random.default_rng(0), Image.fromarray(pixels())
    for _ in range(count):
        seen.clear()
        rand_augment(image, rng, *numbers)
        calls.append(list(seen))
    return calls


def test_every_operation_is_as_likely_and_applied_half_of_the_time(monkeypatch):
    calls = drawn(monkeypatch, 4000, 3)
    numbers = np.bincount([len(call) for call in calls], minlength=4)
    assert len(numbers) == 4
    assert stats.chisquare(numbers, 4000 * stats.binom(3, 0.5).pmf(range(4))).pvalue > 0.001
    names = collections.Counter(name for call in calls for name, _, _ in call)
    assert len(names) == len(OPERATIONS)
    assert stats.chisquare(list(names.values())).pvalue > 0.001
    signs = [sign for call in calls for _, _, sign in call]
    assert set(signs) == {1, -1}
    assert abs(np.mean(signs)) < 0.05


def test_levels_are_normal_about_the_magnitude(monkeypatch):
    levels = [level for call in drawn(monkeypatch, 2000, 2, 5, 0.5) for _, level, _ in call]
    assert stats.kstest(levels, stats.norm(0.5, 0.05).cdf).pvalue > 0.01


def test_levels_stay_in_range_and_without_deviation_are_the_magnitude(monkeypatch):
    wide = np.array([level for call in drawn(monkeypatch, 500, 2, 9, 5) for _, level, _ in call])
    assert (wide.min(), wide.max()) == (0, 1)
    assert {level for call in drawn(monkeypatch, 50, 2, 9, 0) for _, level, _ in call} == {0.9}


def test_the_defaults_are_two_operations_at_magnitude_9(monkeypatch):
    calls = drawn(monkeypatch, 2000)
    assert max(map(len, calls)) == 2
    levels = [level for call in calls for _, level, _ in call]
    want = np.clip(np.random.default_rng(1).normal(0.9, 0.05, 100_000), 0, 1)
    assert stats.ks_2samp(levels, want).pvalue > 0.01


def test_the_generator_decides():
    image = Image.fromarray(pixels())
    results = [
        [np.asarray(rand_augment(image, np.random.default_rng(seed + start))).tobytes() for seed in range(30)]
        for start in (0, 0, 30)
    ]
    assert results[0] == results[1]
    assert results[0] != results[2]


@pytest.mark.parametrize("numbers", [(-1,), (1.5,), (2, -1), (2, 10.5), (2, 9, -0.5)])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(ValueError, match=r"count|magnitude"):
        rand_augment(Image.fromarray(pixels()), np.random.default_rng(0), *numbers)
