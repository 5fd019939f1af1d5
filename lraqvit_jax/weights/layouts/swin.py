"""Swin in timm's names, today's and the authors' own (patch merging at the end of a stage, a plain `head`)."""

import math
import re
from collections.abc import Mapping

import numpy as np

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.models import swin
from lraqvit_jax.weights import layouts
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


def architecture(values: Mapping[str, np.ndarray], name: str, source: str, image_size: int = 0) -> tuple[str, int]:
    """The variant that tensors of these shapes belong to, and the image size.

    No tensor tells the size: it is `image_size`, or the number in the name ("..._224"), or what the window is
    published for.

    Raises:
        UserError: there is none.
    """
    layouts.check(values, {"patch_embed.proj.weight": 4, HALLMARK: 2, "head.weight": 2}, source)
    dim, _, _, patch = values["patch_embed.proj.weight"].shape
    blocks = [match for key in values if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", key))]
    stages = 1 + max((int(match[1]) for match in blocks), default=-1)
    depths = tuple(sum(int(match[1]) == stage for match in blocks) for stage in range(stages))
    rows, heads = values[HALLMARK].shape
    window = (math.isqrt(rows) + 1) // 2
    for variant, fields in swin.VARIANTS.items():
        if (fields["dim"], fields["depths"], fields["heads"][0]) == (dim, depths, heads):
            suffix = "" if patch == fields["patch_size"] else f"_patch{patch}"
            suffix += "" if window == fields["window_size"] else f"_window{window}"
            numbers = [int(number) for number in re.findall(r"_(\d{2,4})(?![0-9a-z])", name)]  # not "_22k"
            size = image_size or (numbers[-1] if numbers else TRAINED_SIZES.get(window, 0))
            if size and not image_size and not numbers:
                console.warn_once(
                    f"{source} does not tell its image size. Assumed is that of the published models with windows of "
                    f"{window}: {size}. If that is wrong, add it to the file's name, such as _{size}."
                )
            if not size:
                raise UserError(f"{source} does not tell its image size; add it to the file's name, such as _224.")
            return variant + suffix, size
    raise UserError(
        f"{source} has stages of {depths} blocks, the first of {dim} features and {heads} heads, which no Swin here "
        "has; name another model."
    )


def rule(path: str, shape: tuple[int, ...]) -> Rule:
    """How our parameter at `path` is made."""
    del shape
    name = re.sub(r"(layers|blocks)_", r"\1.", path).replace("/", ".")
    if path in layouts.PATCH_EMBED:
        return layouts.PATCH_EMBED[path]
    if name.endswith(".kernel"):
        return Rule((name.removesuffix("kernel") + "weight",), np.transpose)
    return Rule((re.sub(r"\.scale$", ".weight", name).replace("patch_norm.", "patch_embed.norm."),), np.asarray)
