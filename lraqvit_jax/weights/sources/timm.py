"""timm checkpoints of ViT, DeiT, distilled DeiT, DeiT-III and Swin: `timm:FILE` or `timm:HUB_ID[@REVISION]`.

The architecture follows from the tensors. How images are prepared is said by timm's `config.json` beside the file, or
by the name of a model that timm has published. For other names it is taken from the family (deit, swin: ImageNet's mean
and std; vit: 0.5), with a warning.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data.preprocess import MAX_SIZE, Preprocess
from lraqvit_jax.weights import Pretrained, hub, layouts, tensors

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
FAMILIES = {"deit": IMAGENET, "swin": IMAGENET, "vit": HALF}
"""Mean and std of nearly every model whose name begins so."""
USUAL = {"crop_pct": 0.9, "interpolation": "bicubic"}
TAGS = r"(_in21k|\.(augreg2?|orig)_\w+)?", r"(\.fb_in1k)?", r"(_22k(to1k)?|\.ms_\w+)?"
PUBLISHED: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"vit_(tiny|small|base|large)_patch(8|16|32)_224" + TAGS[0], {**HALF, "crop_pct": 0.9}),
    (r"vit_(tiny|small|base|large)_patch(8|16|32)_384" + TAGS[0], {**HALF, "crop_pct": 1.0}),
    (r"deit_(tiny|small|base)_(distilled_)?patch16_224" + TAGS[1], {**IMAGENET, "crop_pct": 0.9}),
    (r"deit_(tiny|small|base)_(distilled_)?patch16_384" + TAGS[1], {**IMAGENET, "crop_pct": 1.0}),
    (r"deit3_(small|medium|base|large|huge)_patch1[46]_224\.fb_in1k", {**IMAGENET, "crop_pct": 0.9}),
    (r"deit3_(small|medium|base|large|huge)_patch1[46]_224\.fb_in22k_ft_in1k", {**IMAGENET, "crop_pct": 1.0}),
    (r"deit3_(small|medium|base|large|huge)_patch1[46]_384\.fb_in(1k|22k_ft_in1k)", {**IMAGENET, "crop_pct": 1.0}),
    (r"swin_(tiny|small|base|large)_patch4_window7_224" + TAGS[2], {**IMAGENET, "crop_pct": 0.9}),
    (r"swin_(base|large)_patch4_window12_384" + TAGS[2], {**IMAGENET, "crop_pct": 1.0}),
)
"""Names of timm's published models and what it says of their images, all resized bicubically: `default_cfgs` in timm
1.0, models/vision_transformer.py, deit.py and swin_transformer.py. Other tags (.dino, .mae, _miil, ...) differ."""


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
    values: Mapping[str, np.ndarray],
    name: str,
    source: str,
    sha256: str,
    card: Mapping[str, Any],
    suffix: str = "",
    usual: Mapping[str, Any] = USUAL,
    mend: str = "put timm's config.json beside it, or set data.mean, data.std, data.crop_pct and data.interpolation",
) -> Pretrained:
    """Builds the model from tensors with timm's names.

    Args:
        values: by timm's name, PyTorch layout.
        name: of the architecture, which says how images are prepared, and the image size of a Swin, where the card does
            not.
        source: for the record.
        sha256: likewise.
        card: timm's `pretrained_cfg`, may be empty.
        suffix: of the model's name, such as "_tanh", for what tensors do not tell.
        usual: how images are prepared where neither card nor name says it.
        mend: of a warning that something was taken from there, how a user says it.
    """
    layout = layouts.find(values, source)
    values = layout.normalize(values)
    sizes = card.get("input_size") or (0,)
    if not isinstance(sizes, list | tuple) or not files.whole(sizes[-1], 0, MAX_SIZE):
        raise UserError(f"{source} has the input_size {short(repr(sizes))}; put right the JSON beside it.")
    model, image_size = layout.architecture(values, name, source, sizes[-1])
    model += suffix
    preprocess = Preprocess(size=image_size, **_preparation(name, card, source, usual, mend))
    params = layouts.convert(layout, values, model, image_size)
    return Pretrained(model, params, preprocess, values["head.weight"].shape[0], [], source, sha256)


def published(name: str) -> dict[str, Any]:
    """How timm prepares images for a model that it has published under this name; {} for another."""
    return next((USUAL | fields for pattern, fields in PUBLISHED if re.fullmatch(pattern, name)), {})


def _preparation(
    name: str, card: Mapping[str, Any], source: str, usual: Mapping[str, Any], mend: str
) -> dict[str, Any]:
    """The fields of `Preprocess` but the size: what the card says, or else a published name, or else, with a warning,
    the family.

    Raises:
        UserError: neither tells mean and std, or images are cropped as they are not here.
    """
    if card.get("crop_mode", "center") != "center":
        raise UserError(f"{source} crops images by {short(repr(card['crop_mode']))}; only center can be read.")
    fields = ("crop_pct", "interpolation", "mean", "std")
    card = {field: card[field] for field in fields if card.get(field) is not None}
    card = {field: tuple(value) if isinstance(value, list) else value for field, value in card.items()}
    if preparation := published(name):
        return preparation | card
    family = next((family for family in FAMILIES if name.startswith(family)), "")
    assumed = {**usual, **FAMILIES.get(family, {})}
    missing = [field for field in fields if field not in card]
    if not set(missing) <= set(assumed):
        raise UserError(
            f"{source} does not tell the mean and std of its images; give the file timm's name, such as "
            "deit_tiny_patch16_224.safetensors, or put timm's config.json beside it."
        )
    if missing:
        shown = ", ".join(f"{field} {assumed[field]}" for field in missing)
        console.warn_once(
            f"{source} does not say how its images are prepared. Assumed is what {family or 'such'} models usually "
            f"have: {shown}. If that is wrong, {mend}."
        )
    return assumed | card


def _card(path: pathlib.Path) -> dict[str, Any]:
    """What config.json says: timm's of today, with `pretrained_cfg`, or of old, where its fields lay at the top."""
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    fields = files.json_object(config, "mend it or take it away")
    card, architecture = fields.get("pretrained_cfg", fields), fields.get("architecture", "")
    if not isinstance(card, dict):
        raise UserError(f"{config} has the pretrained_cfg {short(repr(card))}; mend it or take it away.")
    return {**card, "architecture": architecture if isinstance(architecture, str) else ""}
