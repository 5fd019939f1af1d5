"""ViT, DeiT, distilled DeiT and DeiT-III in timm's names."""

import math
import re
from collections.abc import Mapping

import numpy as np

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.models import vit
from lraqvit_jax.weights import layouts
from lraqvit_jax.weights.tensors import Rule

HALLMARK = "cls_token"


def normalize(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(values)


def architecture(values: Mapping[str, np.ndarray], name: str, source: str, image_size: int = 0) -> tuple[str, int]:
    """The variant and the image size that tensors of these shapes belong to.

    Of equal variants, the one of the family that `name` begins with. `image_size` is not needed here.

    Raises:
        UserError: there is none.
    """
    del image_size
    layouts.check(values, {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "head.weight": 2}, source)
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
