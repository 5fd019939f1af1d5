"""timm checkpoints of ViT, DeiT, distilled DeiT, DeiT-III and Swin: `timm:FILE` or `timm:HUB_ID[@REVISION]`.

The architecture follows from the tensors; mean and std from timm's `config.json` beside the file, or else from the
model's name (deit, swin: ImageNet's; vit: 0.5).
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data.preprocess import MAX_SIZE, Preprocess
from lraqvit_jax.weights import Pretrained, hub, layouts, tensors

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def read(name: str) -> Pretrained:
    """Reads a timm checkpoint.

    Raises:
        UserError: missing or broken file, an architecture that is none of ours, tensors that do not fit it.
    """
    path = hub.find(name, ("model.safetensors",))
    card = _card(path)
    return from_tensors(
        tensors.read(path), card.get("architecture") or path.stem, f"timm:{name}", tensors.sha256(path), card
    )


def from_tensors(
    values: Mapping[str, np.ndarray], name: str, source: str, sha256: str, card: Mapping[str, Any], suffix: str = ""
) -> Pretrained:
    """Builds the model from tensors with timm's names.

    Args:
        values: by timm's name, PyTorch layout.
        name: of the architecture, for mean and std, and the image size of a Swin, where the card has none.
        source: for the record.
        sha256: likewise.
        card: timm's `pretrained_cfg`, may be empty.
        suffix: of the model's name, such as "_tanh", for what tensors do not tell.
    """
    layout = layouts.find(values, source)
    values = layout.normalize(values)
    sizes = card.get("input_size") or (0,)
    if not isinstance(sizes, list | tuple) or not files.whole(sizes[-1], 0, MAX_SIZE):
        raise UserError(f"{source} has the input_size {short(repr(sizes))}; put right the JSON beside it.")
    model, image_size = layout.architecture(values, name, source, sizes[-1])
    model += suffix
    preprocess = Preprocess(
        size=image_size,
        crop_pct=card.get("crop_pct", 0.9),
        interpolation=card.get("interpolation", "bicubic"),
        **_statistics(name, card, source),
    )
    params = layouts.convert(layout, values, model, image_size)
    return Pretrained(model, params, preprocess, values["head.weight"].shape[0], [], source, sha256)


def _statistics(name: str, card: Mapping[str, Any], source: str) -> dict[str, Any]:
    if "mean" in card and "std" in card:
        return {key: tuple(card[key]) if isinstance(card[key], list) else card[key] for key in ("mean", "std")}
    for prefix, values in (("deit", IMAGENET), ("swin", IMAGENET), ("vit", HALF)):
        if name.startswith(prefix):
            return values
    raise UserError(
        f"{source} does not tell the mean and std of its images; give the file timm's name, such as "
        "deit_tiny_patch16_224.safetensors, or put timm's config.json beside it."
    )


def _card(path: pathlib.Path) -> dict[str, Any]:
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    fields = files.json_object(config, "mend it or take it away")
    card, architecture = fields.get("pretrained_cfg", {}), fields.get("architecture", "")
    return (
        {**card, "architecture": architecture if isinstance(architecture, str) else ""}
        if isinstance(card, dict)
        else {}
    )
