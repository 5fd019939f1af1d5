"""Swin in timm's names, today's and the authors' own (patch merging at the end of a stage, a plain `head`)."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.models import swin
from lraqvit_jax.weights import cards, layouts
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.tensors import Rule

HALLMARK = "layers.0.blocks.0.attn.relative_position_bias_table"
TRAINED_SIZES = {7: 224, 12: 384}
"""Image size that the published models of a window have."""


def normalize(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Older names to timm's of today, except that the head is `head.weight` in both."""
    if "layers.0.downsample.reduction.weight" in values:
        later = {
            name: re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name)
            for name in values
        }
        values = {later[name]: value for name, value in values.items()}
    return {name.replace("head.fc.", "head."): value for name, value in values.items()}


def architecture(values: Mapping[str, np.ndarray], hints: Hints, source: str) -> tuple[str, int]:
    """The name of the model that tensors of these shapes belong to, and the image size.

    No tensor tells the size: it is that of the card, or what timm has under the name, or what the window is published
    for.

    Raises:
        UserError: nothing tells the size, or stages that have no heads.
    """
    fc1 = "layers.0.blocks.0.mlp.fc1.weight"
    layouts.check(values, {"patch_embed.proj.weight": 4, HALLMARK: 2, fc1: 2} | layouts.head(values), source)
    if hints.pool not in ("", "avg") or hints.norm_eps not in (0, swin.NORM_EPS):
        raise UserError(f"{source} pools by {hints.pool or 'avg'!r}; a Swin here takes the mean of all tokens.")
    dim, _, _, patch = values["patch_embed.proj.weight"].shape
    stages = 1 + max(int(match[1]) for key in values if (match := re.match(r"layers\.(\d+)\.blocks\.", key)))
    fields: dict[str, Any] = {
        "dim": dim,
        "patch_size": patch,
        "gelu": hints.gelu,
        "mlp_dim": layouts.mlp_dim(values[fc1]),
    }
    fields["depths"] = tuple(_depth(values, stage) for stage in range(stages))
    tables = [_table(values, stage, source) for stage in range(stages)]
    fields["heads"] = tuple(table.shape[1] for table in tables)
    windows = [(math.isqrt(table.shape[0]) + 1) // 2 for table in tables]
    fields["window_size"] = windows[0]
    if not all(fields["depths"]) or any(dim * 2**stage % heads for stage, heads in enumerate(fields["heads"])):
        raise UserError(
            f"{source} has stages of {fields['depths']} blocks and {fields['heads']} heads, which no Swin has."
        )

    def changes(base: str) -> dict[str, object]:
        return {field: value for field, value in fields.items() if swin.VARIANTS[base][field] != value}

    base = min(
        swin.VARIANTS, key=lambda base: (not {"dim", "depths", "heads"}.isdisjoint(changes(base)), base != "swin_tiny")
    )
    return models.renamed(base, changes(base)), _image_size(hints, windows, patch, source)


def _depth(values: Mapping[str, np.ndarray], stage: int) -> int:
    return sum(bool(re.fullmatch(rf"layers\.{stage}\.blocks\.\d+\.norm1\.weight", key)) for key in values)


def _table(values: Mapping[str, np.ndarray], stage: int, source: str) -> np.ndarray:
    """The position bias of a stage's first block: ((2 window - 1)^2, heads)."""
    name = HALLMARK.replace("0", str(stage), 1)
    layouts.check(values, {name: 2}, source)
    return values[name]


def _image_size(hints: Hints, windows: list[int], patch: int, source: str) -> int:
    """Of the card, or of the name, or else what is usual for such windows, if those of all stages fit it."""
    published, window = cards.published(hints.name), windows[0]
    size = hints.image_size or (published["input_size"][-1] if published else TRAINED_SIZES.get(window, 0))
    sides = [-(-size // (patch * 2**stage)) for stage in range(len(windows))]
    fits = windows == [min(window, side) for side in sides]
    if not size or not (fits or hints.image_size or published):
        raise UserError(
            f"{source} does not tell its image size, nor does a tensor of a Swin; write "
            '{"pretrained_cfg": {"input_size": [3, 224, 224]}}, with your size, into a config.json beside the file.'
        )
    if not hints.image_size and not published:
        console.warn_once(
            f"{source} does not tell its image size. Assumed is that of the published models with windows of "
            f"{window}: {size}. If that is wrong, put a config.json beside it that has the input_size."
        )
    return size


def fitted(values: Mapping[str, np.ndarray], model: Any) -> Mapping[str, np.ndarray]:
    """The same tensors."""
    del model
    return values


def rule(path: str, shape: tuple[int, ...]) -> Rule:
    """How our parameter at `path` is made."""
    del shape
    name = re.sub(r"(layers|blocks)_", r"\1.", path).replace("/", ".")
    if path in layouts.PATCH_EMBED:
        return layouts.PATCH_EMBED[path]
    if name.endswith(".kernel"):
        return Rule((name.removesuffix("kernel") + "weight",), np.transpose)
    return Rule((re.sub(r"\.scale$", ".weight", name).replace("patch_norm.", "patch_embed.norm."),), np.asarray)
