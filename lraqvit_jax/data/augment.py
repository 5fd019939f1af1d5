"""Augmentation as data: a string such as "random_affine(10, 0.1, 0.9, 1.1)|flip_lr(0.5)", parsed into PIL operations.

An operation is a function here, `op(image, rng, *numbers) -> image`. Its parameters are numbers, in the order of its
signature.
"""

import ast
import inspect
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from lraqvit_jax.errors import UserError, nearest

Augment = Callable[[Image.Image, np.random.Generator], Image.Image]


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


OPERATIONS = {op.__name__: op for op in (random_affine, random_crop, flip_lr)}


def parse(text: str) -> Augment:
    """Builds the augmentation that `text` describes; "" leaves images as they are.

    Raises:
        UserError: an unknown operation, or parameters that are not its numbers.
    """
    steps = [_operation(part.strip()) for part in text.split("|") if part.strip()]

    def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for op, numbers in steps:
            image = op(image, rng, *numbers)
        return image

    return augment


def _operation(text: str) -> tuple[Callable[..., Image.Image], tuple[float, ...]]:
    name, bracket, rest = text.partition("(")
    if name not in OPERATIONS:
        raise UserError(f"augment names the operation {name!r}; {nearest(name, OPERATIONS)}")
    parameters = list(inspect.signature(OPERATIONS[name]).parameters)[2:]
    try:
        inside = ast.literal_eval(f"[{rest.removesuffix(')')}]")
    except (SyntaxError, ValueError):
        inside = ["?"]
    numbers = tuple(inside) if not bracket or rest.endswith(")") else ("?",)
    if len(numbers) > len(parameters) or not all(type(number) in (int, float) for number in numbers):
        raise UserError(f"augment has {text!r}; write {name}({', '.join(parameters)}) with numbers.")
    try:
        OPERATIONS[name](Image.new("RGB", (8, 8)), np.random.default_rng(0), *numbers)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"augment has {text!r}, whose numbers do not work ({error}); correct them.") from error
    return OPERATIONS[name], numbers
