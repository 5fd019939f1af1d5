"""RandAugment (Cubuk et al. 2020), in the variant that timm calls rand-m9-mstd0.5-inc1.

Every operation is `op(image, level, sign) -> image`: a strength in [0, 1] that only ever grows the distortion, and a
direction, 1 or -1, for the operations that have two. New pixels are grey.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float, int], Image.Image]

GREY = (128, 128, 128)
PROBABILITY = 0.5
"""That an operation, once drawn, is applied."""
MOST = 100
"""Operations that are drawn for one image."""
STRONGEST = 10
"""The magnitude at which the level is 1."""


def _enhance(kind: Any) -> Operation:
    """Blends the image with a degenerate one; 1 is the image itself, 0 would be the degenerate one."""
    return lambda image, level, sign: kind(image).enhance(max(0.1, 1 + 0.9 * level * sign))


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """`matrix` (two rows of three) takes output to input coordinates."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


def _posterize(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Keeps the 4 highest bits down to none: a black image. (`ImageOps.posterize` refuses none.)"""
    del sign
    dropped = 4 + int(4 * level)
    return image.point([value >> dropped << dropped for value in range(256)] * len(image.getbands()))


def _solarize_add(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Brightens the darker half of the values."""
    del sign
    table = [min(255, value + int(110 * level)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "invert": lambda image, level, sign: ImageOps.invert(image),
    "rotate": lambda image, level, sign: image.rotate(30 * level * sign, Image.Resampling.BILINEAR, fillcolor=GREY),
    "posterize": _posterize,
    "solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - int(256 * level)),
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, level, sign: _affine(image, 1, 0.3 * level * sign, 0, 0, 1, 0),
    "shear_y": lambda image, level, sign: _affine(image, 1, 0, 0, 0.3 * level * sign, 1, 0),
    "translate_x": lambda image, level, sign: _affine(image, 1, 0, 0.45 * level * sign * image.width, 0, 1, 0),
    "translate_y": lambda image, level, sign: _affine(image, 1, 0, 0, 0, 1, 0.45 * level * sign * image.height),
}


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    operations: int = 2,
    magnitude: float = 9,
    magnitude_std: float = 0.5,
) -> Image.Image:
    """Draws `operations` of `OPERATIONS`, repeats allowed, and applies each with probability 0.5.

    Args:
        image: RGB.
        rng: of every choice.
        operations: drawn per image.
        magnitude: strength on a scale from 0 to 10.
        magnitude_std: standard deviation of each operation's own strength about `magnitude`; it stays within 0 to 10.

    Raises:
        ValueError: numbers out of range.
    """
    if operations != int(operations) or not 0 <= operations <= MOST:
        raise ValueError(f"operations is {operations}, not a count up to {MOST}")
    if not 0 <= magnitude <= STRONGEST or magnitude_std < 0:
        raise ValueError(f"magnitude is 0 to {STRONGEST}, its standard deviation not negative")
    for name in rng.choice(list(OPERATIONS), int(operations)):
        level = min(1.0, max(0.0, rng.normal(magnitude, magnitude_std) / STRONGEST))
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < PROBABILITY:
            image = OPERATIONS[name](image, level, sign)
    return image
