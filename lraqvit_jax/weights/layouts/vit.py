"""ViT, DeiT, distilled DeiT and DeiT-III in timm's names."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.models import vit
from lraqvit_jax.weights import layouts
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.tensors import Rule

HALLMARK = "cls_token"
FC_NORM = "fc_norm"
"""A mark, no tensor: see `timm.from_tensors`."""


def normalize(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The last LayerNorm is `norm`, whether it stands before the pooling or, as `fc_norm`, behind it."""
    if "norm.weight" in values:
        return dict(values)
    return {re.sub(r"^fc_norm\.", "norm.", name): value for name, value in values.items()}


def architecture(values: Mapping[str, np.ndarray], hints: Hints, source: str) -> tuple[str, int]:
    """The name of the model and the image size that tensors of these shapes belong to.

    Raises:
        UserError: no tensor tells the heads, nor does a card; or no square of patches.
    """
    fc1 = "blocks.0.mlp.fc1.weight"
    needed = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, fc1: 2, "head.weight": 2}
    layouts.check(values, needed, source)
    dim, patch = values["cls_token"].shape[-1], values["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max((int(match[1]) for key in values if (match := re.match(r"blocks\.(\d+)\.", key))), default=-1)
    fields: dict[str, Any] = {
        "dim": dim,
        "depth": depth,
        "patch_size": patch,
        "heads": hints.heads or _usual_heads(dim, hints, source),
        "mlp_dim": layouts.mlp_dim(values[fc1]),
    }
    if fields["heads"] <= 0 or dim % fields["heads"]:
        raise UserError(
            f"{source} has {dim} features, which {fields['heads']} heads cannot share; correct their number."
        )
    distilled, scaled = "dist_token" in values, "blocks.0.ls1.gamma" in values
    fields |= {"gelu": hints.gelu, "norm_eps": hints.norm_eps or vit.NORM_EPS}
    fields["pool"] = _pool(values, hints, source, distilled)
    side = _side(values["pos_embed"].shape[1], 1 + distilled, scaled or hints.embed_class is False, source)
    kinds = [
        base
        for base, variant in vit.VARIANTS.items()
        if (variant.get("distilled", False), variant.get("layer_scale", False)) == (distilled, scaled)
    ]
    if not kinds or depth == 0:
        raise UserError(f"{source} has {depth} blocks of {dim} features, distilled and scaled: no ViT or DeiT here is.")
    family = hints.name.partition("_")[0]

    def changes(base: str) -> dict[str, object]:
        return {field: value for field, value in fields.items() if vit.VARIANTS[base][field] != value}

    base = min(
        kinds, key=lambda base: (not {"dim", "depth"}.isdisjoint(changes(base)), base.partition("_")[0] != family)
    )
    return models.renamed(base, changes(base)), side * patch


def _usual_heads(dim: int, hints: Hints, source: str) -> int:
    if dim in (64 * hints.usual_heads, 80 * hints.usual_heads):
        return hints.usual_heads
    usual = next((variant["heads"] for variant in vit.VARIANTS.values() if variant["dim"] == dim), 0)
    if not usual:
        raise UserError(
            f"{source} has {dim} features, and no tensor nor card tells how many heads share them; {hints.mend}."
        )
    return usual


def _pool(values: Mapping[str, np.ndarray], hints: Hints, source: str, distilled: bool) -> str:
    """What `models.vit.ViT` calls it. A last LayerNorm `fc_norm` comes with the mean, unless a card says otherwise."""
    behind = FC_NORM in values
    if hints.pool == "avg" or (behind and not hints.pool):
        if distilled:
            raise UserError(f"{source} is distilled and takes the mean of its tokens, which can not be read.")
        return "avg" if behind else "normavg"
    return "first" if distilled and not any(name.startswith("head_dist.") for name in values) else "token"


def _side(positions: int, prefix: int, no_class: bool, source: str) -> int:
    """Patches along a side."""
    square = positions if no_class and math.isqrt(positions) ** 2 == positions else positions - prefix
    side = math.isqrt(max(square, 0))
    if side**2 != square or not side:
        raise UserError(
            f"{source} has {positions} positions for {prefix} tokens and a square of patches, which do not add up: "
            "models of rectangular images can not be read, and where the class token has no position, "
            'config.json says so by {"model_args": {"no_embed_class": true}}.'
        )
    return side


def rule(path: str, shape: tuple[int, ...]) -> Rule:
    """How our parameter at `path` is made."""
    name = path.replace("blocks_", "blocks.").replace("/", ".")
    if path in layouts.PATCH_EMBED:
        return layouts.PATCH_EMBED[path]
    if path == "pos_embed":
        # DeiT-III and big_vision add no position to the class token.
        return Rule((name,), lambda w: w if w.shape[1] != shape[1] - 1 else np.pad(w, ((0, 0), (1, 0), (0, 0))))
    if name.endswith("_gamma"):
        return Rule((name.replace("_gamma", ".gamma"),), np.asarray)
    if name.endswith(".kernel"):
        return Rule((name.removesuffix("kernel") + "weight",), np.transpose)
    return Rule((re.sub(r"\.scale$", ".weight", name),), np.asarray)
