"""timm checkpoints of ViT, DeiT, distilled DeiT and DeiT-III: `timm:FILE` or `timm:HUB_ID[@REVISION]`.

The architecture follows from the tensors; mean and std from timm's `config.json` beside the file, or else from the
model's name (deit: ImageNet's; vit: 0.5).
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax import hub, models, sharding, tensors
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.errors import UserError
from lraqvit_jax.models import vit
from lraqvit_jax.tensors import Rule
from lraqvit_jax.weights import Pretrained

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
    values: Mapping[str, np.ndarray], name: str, source: str, sha256: str, card: Mapping[str, Any]
) -> Pretrained:
    """Builds the model from tensors with timm's names.

    Args:
        values: by timm's name, PyTorch layout.
        name: of the architecture, for mean and std where the card has none.
        source: for the record.
        sha256: likewise.
        card: timm's `pretrained_cfg`, may be empty.
    """
    model, image_size = architecture(values, name, source)
    num_classes = values["head.weight"].shape[0]
    preprocess = Preprocess(
        size=image_size,
        crop_pct=card.get("crop_pct", 0.9),
        interpolation=card.get("interpolation", "bicubic"),
        **_statistics(name, card, source),
    )
    built = models.create(model, num_classes=num_classes, image_size=image_size)
    abstract = sharding.abstract_params(built, image_size, sharding.one_device())
    shapes = {path: leaf.shape for path, leaf in tensors.flatten(abstract).items()}
    params = tensors.convert(values, rules(shapes), shapes)
    return Pretrained(model, params, preprocess, num_classes, [], source, sha256)


def architecture(values: Mapping[str, np.ndarray], name: str, source: str) -> tuple[str, int]:
    """The variant and the image size that tensors of these shapes belong to.

    Of equal variants, the one of the family that `name` begins with.

    Raises:
        UserError: there is none.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight")
    missing = [name for name in needed if name not in values or values[name].ndim < 2]
    if missing:
        raise UserError(f"{source} has no {', '.join(missing)}: it is no ViT or DeiT classifier in timm's names.")
    dim, patch = values["cls_token"].shape[-1], values["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max((int(match[1]) for key in values if (match := re.match(r"blocks\.(\d+)\.", key))), default=-1)
    distilled, scaled = "dist_token" in values, "blocks.0.ls1.gamma" in values
    family = name.partition("_")[0]
    for variant in sorted(vit.VARIANTS, key=lambda variant: variant.partition("_")[0] != family):
        fields = vit.VARIANTS[variant]
        kind = (fields.get("distilled", False), fields.get("layer_scale", False))
        if (fields["dim"], fields["depth"], kind) == (dim, depth, (distilled, scaled)):
            side = math.isqrt(values["pos_embed"].shape[1])  # one or two class tokens do not reach the next square
            return variant if patch == fields["patch_size"] else f"{variant}_patch{patch}", side * patch
    raise UserError(
        f"{source} has {depth} blocks of {dim} features, which no ViT or DeiT here has; name another model."
    )


def rules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Rule]:
    """How each of our parameters is made from timm's tensors."""
    return {path: _rule(path, shape) for path, shape in shapes.items()}


def _rule(path: str, shape: tuple[int, ...]) -> Rule:
    name = path.replace("blocks_", "blocks.").replace("/", ".")
    if path == "patch_embed/kernel":
        # (dim, 3, p, p) -> rows in the order of our patches: row, column, channel.
        return Rule(("patch_embed.proj.weight",), lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]))
    if path == "patch_embed/bias":
        return Rule(("patch_embed.proj.bias",), np.asarray)
    if path == "pos_embed":
        # DeiT-III adds no position to the class token.
        return Rule((name,), lambda w: w if w.shape[1] != shape[1] - 1 else np.pad(w, ((0, 0), (1, 0), (0, 0))))
    if name.endswith("_gamma"):
        return Rule((name.replace("_gamma", ".gamma"),), np.asarray)
    if name.endswith(".kernel"):
        return Rule((name.removesuffix("kernel") + "weight",), np.transpose)
    return Rule((re.sub(r"\.scale$", ".weight", name),), np.asarray)


def _statistics(name: str, card: Mapping[str, Any], source: str) -> dict[str, Any]:
    if "mean" in card and "std" in card:
        return {"mean": tuple(card["mean"]), "std": tuple(card["std"])}
    for prefix, values in (("deit", IMAGENET), ("vit", HALF)):
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
    try:
        fields = json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"{config} cannot be read ({error}); mend it or take it away.") from error
    card = fields.get("pretrained_cfg", {})
    return {**card, "architecture": fields.get("architecture", "")} if isinstance(card, dict) else {}
