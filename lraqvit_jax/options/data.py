"""Images: where they come from, and how they are prepared."""

import dataclasses
from typing import Any

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.options.records import option


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Sources, as KIND:NAME."""

    train: str = ""
    eval: str = ""
    calibration: str = ""  # "" is train
    data_dir: str = ""
    crop_pct: float = option(0.0, low=0, high=1)  # 0 keeps the weights'; 1 where the images are cropped already
    interpolation: str = ""  # "" keeps the weights'
    mean: tuple[float, ...] = ()  # of red, green and blue, subtracted from pixels in [0, 1]; () keeps the weights'
    std: tuple[float, ...] = option((), above=0)  # likewise, divides them
    crop_mode: str = option("", choices=("", "center", "squash"))  # "" keeps the weights'
    on_bad_image: str = option("fail", choices=("fail", "skip"))  # for files that hold no image; see docs/data.md

    @property
    def preprocess(self) -> dict[str, Any]:
        """What of the preparation of images is set otherwise than the weights have it."""
        fields = {name: getattr(self, name) for name in ("crop_pct", "interpolation", "mean", "std", "crop_mode")}
        return {name: value for name, value in fields.items() if value}

    def source(self, role: str) -> str:
        """The data source for "train", "eval" or "calibration"; UserError where there is none."""
        if name := getattr(self, role) or ("" if role == "eval" else self.train):
            return name
        raise UserError(f"data.{role} is empty; name a data source, such as embedded:mnist5k or folder:PATH.")


@dataclasses.dataclass(frozen=True)
class PreprocessOptions:
    """Of a model that is trained here; pretrained weights bring their own."""

    size: int = option(224, above=0)
    crop_pct: float = option(0.9, above=0, high=1)
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = option((0.5, 0.5, 0.5), above=0)
    crop_mode: str = option("center", choices=("center", "squash"))
