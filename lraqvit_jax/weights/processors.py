"""transformers' image processors: what preprocessor_config.json makes of a photograph, as `Preprocess` says it."""

import math
import re
from collections.abc import Mapping
from typing import Any

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data.preprocess import INTERPOLATIONS, MAX_SIZE, Preprocess

FILE = "preprocessor_config.json"
RESAMPLE = {int(number): name for name, number in INTERPOLATIONS.items()}
"""Interpolation by PIL's number."""
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "default_to_square": False,
}
_STANDARD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _STANDARD | {"resample": 2, "size": 224},
    "DeiT": _STANDARD | {"resample": 3, "size": 256, "crop_size": 224, "do_center_crop": True},
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": _STANDARD | {"resample": 3, "size": 224},
}
"""What the processors take for fields that are absent, by the beginning of their names."""
OF_MODEL = {
    **{"vit": "ViT", "deit": "DeiT", "swin": "ViT", "dinov2": "Bit", "dinov2_with_registers": "Bit"},
    **{"clip_vision_model": "CLIP", "siglip_vision_model": "Siglip"},
}
WHITE = 255


def preparation(fields: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], int]:
    """What a processor does.

    Args:
        fields: of preprocessor_config.json.
        kind: the model's type, which names the processor where the fields do not.

    Returns:
        the fields of `Preprocess` but the size, and the side of the images; 0 where they are left as they are.

    Raises:
        UserError: it does what `Preprocess` does not.
    """
    name = fields.get("image_processor_type") or fields.get("feature_extractor_type") or OF_MODEL[kind]
    short_name = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name) if isinstance(name, str) else ""
    if short_name not in DEFAULTS:
        raise UserError(f"{FILE} is of {short(repr(name))}; these processors can be read: {', '.join(DEFAULTS)}.")
    said = {name for name, value in fields.items() if value is not None}
    fields = {"default_to_square": True, **DEFAULTS[short_name]} | {
        name: value for name, value in fields.items() if value is not None
    }
    geometry, side = _geometry(fields)
    if kind in ("vit", "deit") and not said & {"size", "crop_size"}:
        side = 0  # transformers' ViT takes no size but its own
    return {**geometry, "interpolation": _interpolation(fields["resample"]), **_statistics(fields)}, side


def fields(prepare: Preprocess) -> dict[str, Any]:
    """The fields of preprocessor_config.json of the processor that does the same; `preparation` reads them."""
    side, edge = prepare.size, int(prepare.size / prepare.crop_pct)
    square = {"height": edge, "width": edge}
    crops = prepare.crop_mode == "center" or edge != side
    return {
        "image_processor_type": "CLIPImageProcessor" if prepare.crop_mode == "center" else "DeiTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": edge} if prepare.crop_mode == "center" else square,
        "resample": int(INTERPOLATIONS[prepare.interpolation]),
        "do_center_crop": crops,
        **({"crop_size": {"height": side, "width": side}} if crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / WHITE,
        "do_normalize": True,
        "image_mean": list(prepare.mean),
        "image_std": list(prepare.std),
        "do_convert_rgb": True,
    }


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{FILE} has {name} = {short(repr(value))}; it is true or false.")
    return value


def _interpolation(resample: Any) -> str:
    if type(resample) is not int or resample not in RESAMPLE:
        raise UserError(f"{FILE} has resample {short(repr(resample))}, of {RESAMPLE} none.")
    return RESAMPLE[resample]


def _geometry(fields: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """crop_mode and crop_pct, and the side of the result."""
    crops = _flag(fields, "do_center_crop", False)
    if not _flag(fields, "do_resize", True):
        if crops:
            raise UserError(f"{FILE} crops images without resizing them, which is not done here; set do_resize.")
        return {"crop_mode": "squash", "crop_pct": 1.0}, 0
    side, keeps_shape = _side(fields["size"], "size", not _flag(fields, "default_to_square", True))
    if not crops:
        if keeps_shape:
            raise UserError(f"{FILE} resizes the shorter edge and crops nothing, so that no image has a fixed size.")
        return {"crop_mode": "squash", "crop_pct": 1.0}, side
    crop, edge = _side(fields.get("crop_size"), "crop_size", False)
    if edge or not 0 < crop <= side:
        raise UserError(f"{FILE} crops {crop} pixels out of {side}; correct crop_size and size.")
    spare = side - crop
    if not keeps_shape and round(spare / 2) != spare // 2:
        raise UserError(f"{FILE} crops {crop} pixels out of {side}, whose middle is rounded otherwise here.")
    share = crop / side if int(crop / (crop / side)) == side else crop / (side + 1e-6)
    return {"crop_mode": "center" if keeps_shape else "squash", "crop_pct": share}, crop


def _side(size: Any, name: str, edge: bool) -> tuple[int, bool]:
    """Pixels of a side, and whether they are the shorter edge's alone; `edge` says it of a bare number."""
    wrong = UserError(f"{FILE} has the {name} {short(repr(size))}; here images are square, give their side in pixels.")
    if isinstance(size, Mapping):
        if set(size) == {"shortest_edge"}:
            size, edge = size["shortest_edge"], True
        elif set(size) == {"height", "width"}:
            size = [size["height"], size["width"]]
        else:
            raise wrong
    if isinstance(size, list):
        if len(size) != 2 or repr(size[0]) != repr(size[1]):
            raise wrong
        size, edge = size[0], False
    if not files.whole(size, 1, MAX_SIZE):
        raise wrong
    return size, edge


def _statistics(fields: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Mean and std where white is 1: (pixel * factor - mean) / std, whatever the factor."""
    factor = fields.get("rescale_factor", 1 / WHITE) if _flag(fields, "do_rescale", True) else 1.0
    given = (fields["image_mean"], fields["image_std"]) if _flag(fields, "do_normalize", True) else (0.0, 1.0)
    mean, std = map(_three, given)
    if not files.numbers(mean, 3) or not files.numbers(std, 3) or not files.number(factor) or factor <= 0:
        raise UserError(f"{FILE} has no three numbers in image_mean and image_std, or a rescale_factor of 0 or less.")
    white = 1.0 if math.isclose(factor * WHITE, 1) else factor * WHITE
    return {"mean": tuple(one / white for one in mean), "std": tuple(one / white for one in std)}


def _three(value: Any) -> Any:
    """A number for each channel."""
    return [value] * 3 if files.number(value) else value
