"""Preprocess: how a photograph becomes the array a model was trained on. It travels with the weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from lraqvit_jax.data import images
from lraqvit_jax.errors import UserError, nearest

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `size / crop_pct`, crop the centre, normalize (timm's evaluation transform).

    Attributes:
        size: side of the result in pixels.
        crop_pct: share of the resized image that the crop keeps, in (0, 1].
        interpolation: "nearest", "bilinear" or "bicubic".
        mean: of each channel, on a scale where white is 1.
        std: likewise.
    """

    size: int
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            known = nearest(self.interpolation, INTERPOLATIONS)
            raise UserError(f"preprocess.interpolation is {self.interpolation!r}; {known}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"preprocess.crop_pct is {self.crop_pct}; it is a share, in (0, 1].")
        if self.size <= 0:
            raise UserError(f"preprocess.size is {self.size}; set it to the side of the model's input in pixels.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("preprocess.mean and preprocess.std take three numbers each, and no std may be 0.")

    def geometry(self, image: Image.Image) -> Image.Image:
        """Converts to RGB, resizes and crops; the result is a size x size image."""
        image = images.rgb(image)
        if image.size == (self.size, self.size) and self.crop_pct == 1:
            return image
        short = int(self.size / self.crop_pct)
        width, height = (int(short * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def squash(self, image: Image.Image) -> Image.Image:
        """Converts to RGB and resizes to size x size, whatever the sides were."""
        return images.rgb(image).resize((self.size, self.size), INTERPOLATIONS[self.interpolation])

    def normalize(self, image: Image.Image) -> Float[np.ndarray, "size size 3"]:
        scale = 1 / (255 * np.asarray(self.std, np.float32))
        shift = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return np.asarray(image, np.float32) * scale - shift

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "size size 3"]:
        """Turns a PIL image of any size and mode into one normalized float32 array."""
        return self.normalize(self.geometry(image))

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}


def from_json(data: Mapping[str, Any]) -> Preprocess:
    return Preprocess(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
