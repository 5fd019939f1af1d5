"""Preprocess: how a photograph becomes the array a model was trained on. It travels with the weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest, short
from lraqvit_jax.data import images

MAX_SIZE = 2**13
"""Pixels of the shorter side of a resized image; the longer is at most `images.MAX_RATIO` times that."""
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

FAR = 10_000
"""Largest mean and deviation, and inverse of the smallest."""
CROP_MODES = ("center", "squash")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, normalize (timm's evaluation transform).

    Attributes:
        size: side of the result in pixels.
        crop_pct: share of the resized image that the crop keeps, in (0, 1]; of its side, `size / crop_pct`.
        interpolation: of `INTERPOLATIONS`.
        mean: of each channel, on a scale where white is 1.
        std: likewise.
        crop_mode: "center" resizes the shorter side and keeps the shape; "squash" resizes both sides to the same.
    """

    size: int
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.crop_mode not in CROP_MODES:
            raise UserError(f"preprocess.crop_mode is {short(repr(self.crop_mode))}; {' or '.join(CROP_MODES)} it is.")
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            hint = nearest(str(self.interpolation), INTERPOLATIONS)
            raise UserError(f"preprocess.interpolation is {short(repr(self.interpolation))}; {hint}")
        if not files.number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise UserError(f"preprocess.crop_pct is {short(repr(self.crop_pct))}; it is a share, in (0, 1].")
        if not isinstance(self.size, int | np.integer) or not 0 < self.size <= MAX_SIZE * self.crop_pct:
            raise UserError(
                f"preprocess.size is {short(repr(self.size))} and the crop {self.crop_pct}; set it to the side of the "
                f"model's input in pixels, at most {MAX_SIZE:,} before the crop."
            )
        if not files.numbers(self.mean, 3) or not files.numbers(self.std, 3) or min(self.std) <= 0:
            raise UserError("preprocess.mean and preprocess.std take three numbers each, and no std may be 0.")
        if max(map(abs, self.mean)) > FAR or not all(1 / FAR <= std <= FAR for std in self.std):
            raise UserError(
                f"preprocess.mean is {short(str(self.mean))} and std {short(str(self.std))}, where white is 1; beyond "
                f"{FAR:,}, or below 1 / {FAR:,} for std, nothing of a picture is left."
            )

    def geometry(self, image: Image.Image) -> Image.Image:
        """Converts to RGB, resizes and crops; the result is a size x size image."""
        image = images.rgb(image)
        if image.size == (self.size, self.size) and self.crop_pct == 1:
            return image
        short = int(self.size / self.crop_pct)
        shape = image.size if self.crop_mode == "center" else (1, 1)
        width, height = (int(short * side / min(shape)) for side in shape)
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
        """The usual crop_mode is left out: files of before have none."""
        fields = {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in fields.items() if (name, value) != ("crop_mode", CROP_MODES[0])}


def from_json(data: Mapping[str, Any]) -> Preprocess:
    """Reads one back; UserError where it does not have the shape of one."""
    fields = [field.name for field in dataclasses.fields(Preprocess)]
    for name in data:
        if name not in fields:
            raise UserError(f"preprocess has the field {short(name)!r}; {nearest(name, fields)}")
    if "size" not in data:
        raise UserError("preprocess has no size; set it to the side of the model's input in pixels.")
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return Preprocess(**{**data, **lists})
