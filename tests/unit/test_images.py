"""Preprocess and augmentation against PIL and NumPy."""

import numpy as np
import pytest
from PIL import Image

from lraqvit_jax.data import augment, preprocess
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.errors import UserError


def photograph(rng, size=(50, 38)):
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_preprocess_is_resize_crop_normalize(rng):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    one = Preprocess(24, crop_pct=0.8, mean=mean, std=std)
    image = photograph(rng)
    # The shorter side becomes 24 / 0.8 = 30, the longer keeps its ratio: 39.5 rounds to 39.
    resized = np.asarray(image.resize((39, 30), Image.Resampling.BICUBIC), np.float64)
    crop = resized[3:27, 8:32] if round((39 - 24) / 2) == 8 else resized[3:27, 7:31]
    want = (crop / 255 - mean) / std
    assert one(image).dtype == np.float32
    np.testing.assert_allclose(one(image), want, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_three_channels(rng, mode):
    assert Preprocess(16)(photograph(rng).convert(mode)).shape == (16, 16, 3)


@pytest.mark.parametrize("size", [(16, 300), (300, 16), (1, 1), (17, 16)])
def test_every_shape_becomes_the_square(rng, size):
    assert Preprocess(16, crop_pct=0.9)(photograph(rng, size)).shape == (16, 16, 3)


def test_json_round_trip():
    one = Preprocess(24, 0.875, "bilinear", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert preprocess.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"size": 0}, "size"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
    ],
)
def test_a_field_out_of_range_is_named(fields, word):
    with pytest.raises(UserError, match=word):
        Preprocess(**{"size": 16, **fields})


def test_affine_without_motion_is_the_image_and_a_shift_shifts(rng):
    image = photograph(rng, (20, 20))
    still = augment.random_affine(image, rng, 0, 0, 1, 1)
    assert np.array_equal(np.asarray(still), np.asarray(image))

    class Right:
        uniform = staticmethod(lambda low, high, count=None: (low + high) / 2 if count is None else np.array([0.1, 0]))

    moved = augment.random_affine(image, Right(), 0, 0.1, 1, 1)
    assert np.array_equal(np.asarray(moved)[:, 2:], np.asarray(image)[:, :-2])


def test_affine_turns_and_grows_about_the_centre():
    image = Image.new("L", (41, 41))
    image.putpixel((20, 10), 255)

    class Quarter:
        values = iter([np.pi, 0.0])  # degrees drawn, then shear

        def uniform(self, low, high, count=None):
            return np.zeros(2) if count else high

    turned = np.asarray(augment.random_affine(image, Quarter(), 90, 0, 1, 1))
    row, column = np.unravel_index(turned.argmax(), turned.shape)
    assert {abs(row - 20), abs(column - 20)} == {0, 10}
    grown = np.asarray(augment.random_affine(image, Quarter(), 0, 0, 1, 1.5))
    assert np.unravel_index(grown.argmax(), grown.shape) == (5, 20)


def test_augmentation_is_a_pipeline_of_its_text(rng):
    image = photograph(rng, (12, 12))
    flip = augment.parse("flip_lr(1)")
    assert np.array_equal(np.asarray(flip(image, rng)), np.asarray(image)[:, ::-1])
    assert np.array_equal(np.asarray(augment.parse("flip_lr(1) | flip_lr(1.0)")(image, rng)), np.asarray(image))
    assert augment.parse("")(image, rng) is image
    one, same = (augment.parse("random_affine|random_crop(2)")(image, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(np.asarray(one), np.asarray(same))
    assert not np.array_equal(np.asarray(one), np.asarray(image))


@pytest.mark.parametrize(
    "text", ["flip(1)", "flip_lr(1, 2)", "flip_lr(x)", "flip_lr('1')", "random_crop(", "__import__('os')"]
)
def test_text_that_is_no_augmentation_is_named(text):
    with pytest.raises(UserError, match="augment"):
        augment.parse(text)
