"""Augmentation as data: a string such as "random_affine(10, 0.1, 0.9, 1.1)|flip_lr(0.5)", parsed into PIL operations.

An operation is a function, `op(image, rng, *numbers) -> image`. Its parameters are numbers, in the order of its
signature. Images are RGB and of the model's size, but for `random_resized_crop`, which comes first and sees the
original.
"""

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from lraqvit_jax.base.errors import UserError, nearest, short
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.rand_augment import rand_augment

MAX_TEXT = 2000
TRIES = 10
"""Boxes that are drawn before a random box that has to fit is given up."""


def random_affine(
    image: Image.Image,
    rng: np.random.Generator,
    degrees: float = 10.0,
    translate: float = 0.1,
    scale_min: float = 0.9,
    scale_max: float = 1.1,
    shear: float = 0.0,
) -> Image.Image:
    """Rotates, shifts (share of the side), scales and shears (degrees) about the centre; new pixels are black."""
    angle, slant = (math.radians(rng.uniform(-limit, limit)) for limit in (degrees, shear))
    scale = rng.uniform(scale_min, scale_max)
    width, height = image.size
    dx, dy = rng.uniform(-translate, translate, 2) * (width, height)
    # PIL wants the map from output to input coordinates.
    a, b = math.cos(angle) / scale, math.sin(angle) / scale + math.tan(slant)
    d, e = -math.sin(angle) / scale, math.cos(angle) / scale
    cx, cy = width / 2, height / 2  # PIL counts from the pixel's corner
    c, f = cx - a * (cx + dx) - b * (cy + dy), cy - d * (cx + dx) - e * (cy + dy)
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)


def random_crop(image: Image.Image, rng: np.random.Generator, padding: int = 4) -> Image.Image:
    """Pads with black and crops back to the same size at a random place."""
    left, top = rng.integers(-padding, padding, 2, endpoint=True)
    return image.crop((left, top, left + image.width, top + image.height))


def flip_lr(image: Image.Image, rng: np.random.Generator, probability: float = 0.5) -> Image.Image:
    """Mirrors left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < probability else image


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    scale_min: float = 0.08,
    scale_max: float = 1.0,
    ratio_min: float = 3 / 4,
    ratio_max: float = 4 / 3,
) -> Image.Image:
    """Crops a random box (Szegedy et al. 2015, as torchvision draws it); `Augment` resizes it to the model's size.

    The box's share of the area is uniform, the logarithm of its width over its height too. Where ten boxes do not fit,
    it is the largest central one of an allowed ratio.
    """
    if not 0 < scale_min <= scale_max <= 1:
        raise ValueError("the scale is a share of the area, in (0, 1], smallest first")
    if not 0 < ratio_min <= ratio_max:
        raise ValueError("the ratio is above 0, smallest first")
    width, height = image.size
    for _ in range(TRIES):
        area = rng.uniform(scale_min, scale_max) * width * height
        ratio = math.exp(rng.uniform(math.log(ratio_min), math.log(ratio_max)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return image.crop((left, top, left + w, top + h))
    w = min(width, max(1, round(height * ratio_max)))
    h = min(height, max(1, round(width / ratio_min)))
    left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


def color_jitter(
    image: Image.Image,
    rng: np.random.Generator,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
) -> Image.Image:
    """Scales each by a factor uniform in [1 - x, 1 + x], not below 0, in random order."""
    if min(brightness, contrast, saturation) < 0:
        raise ValueError("none of them may be negative")
    kinds = (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    )
    for index in rng.permutation(len(kinds)):
        enhancer, limit = kinds[index]
        image = enhancer(image).enhance(rng.uniform(max(0, 1 - limit), 1 + limit))
    return image


def random_erasing(
    image: Image.Image,
    rng: np.random.Generator,
    probability: float = 0.25,
    area_min: float = 0.02,
    area_max: float = 1 / 3,
) -> Image.Image:
    """Replaces a random box by uniform noise, pixel by pixel (Zhong et al. 2020).

    The box's share of the area is uniform, the logarithm of its height over its width too, between those of 0.3 and
    1 / 0.3. Where ten boxes do not fit, the image stays.
    """
    if not 0 < area_min <= area_max <= 1:
        raise ValueError("the area is a share, in (0, 1], smallest first")
    if rng.random() >= probability:
        return image
    for _ in range(TRIES):
        area = rng.uniform(area_min, area_max) * image.width * image.height
        ratio = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        w, h = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if w <= image.width and h <= image.height:
            left, top = rng.integers(image.width - w + 1), rng.integers(image.height - h + 1)
            pixels = np.array(image)
            box = pixels[top : top + h, left : left + w]
            box[...] = rng.integers(0, 256, box.shape, np.uint8)
            return Image.fromarray(pixels)
    return image


OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    op.__name__: op
    for op in (
        random_affine,
        random_crop,
        flip_lr,
        random_resized_crop,
        color_jitter,
        random_erasing,
        rand_augment,
    )
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """From a photograph to an augmented image of the model's size.

    Attributes:
        steps: operations with their numbers, in order.
    """

    steps: tuple[tuple[str, tuple[float, ...]], ...]

    def __call__(self, image: Image.Image, preprocess: Preprocess, rng: np.random.Generator) -> Image.Image:
        """Any size and mode in, RGB of `preprocess.size` out."""
        steps = self.steps
        if steps and steps[0][0] == "random_resized_crop":
            image = preprocess.squash(random_resized_crop(image, rng, *steps[0][1]))
            steps = steps[1:]
        else:
            image = preprocess.geometry(image)
        for name, numbers in steps:
            image = OPERATIONS[name](image, rng, *numbers)
        return image


def parse(text: str) -> Augment:
    """Builds the augmentation that `text` describes; "" only resizes and crops.

    Raises:
        UserError: an unknown operation, parameters that are not its numbers, or a `random_resized_crop` that is not
            the first.
    """
    if len(text) > MAX_TEXT:
        raise UserError(f"augment has {len(text):,} characters, more than {MAX_TEXT:,}; write fewer operations.")
    steps = tuple(_operation(part.strip()) for part in text.split("|") if part.strip())
    if any(name == "random_resized_crop" for name, _ in steps[1:]):
        raise UserError("augment has random_resized_crop after another operation; it crops the original, put it first.")
    return Augment(steps)


def _operation(text: str) -> tuple[str, tuple[float, ...]]:
    name, bracket, rest = text.partition("(")
    if name not in OPERATIONS:
        raise UserError(f"augment names the operation {short(name)!r}; {nearest(name, OPERATIONS)}")
    parameters = list(inspect.signature(OPERATIONS[name]).parameters)[2:]
    try:
        inside = ast.literal_eval(f"[{rest.removesuffix(')')}]")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        inside = ["?"]
    numbers = tuple(inside) if not bracket or rest.endswith(")") else ("?",)
    if len(numbers) > len(parameters) or not all(type(number) in (int, float) for number in numbers):
        raise UserError(f"augment has {text!r}; write {name}({', '.join(parameters)}) with numbers.")
    try:
        OPERATIONS[name](Image.new("RGB", (8, 8)), np.random.default_rng(0), *numbers)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"augment has {text!r}, whose numbers do not work ({error}); correct them.") from error
    return name, numbers
