"""ViT, DeiT, distilled DeiT, DeiT-III, CLIP, DINOv2 and SigLIP in timm's names."""

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

HALLMARK = "pos_embed"
FC_NORM = "fc_norm"
"""A mark, no tensor: see `timm.from_tensors`."""
FAMILIES = ("dinov2", "siglip", "clip")
"""Parts of names of architectures that say of which family they are; of others, how they begin."""


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
    fc1, fc2 = (f"blocks.0.mlp.{layer}.weight" for layer in ("fc1", "fc2"))
    needed = {"pos_embed": 3, "patch_embed.proj.weight": 4, fc1: 2, fc2: 2}
    optional = {"cls_token": 3, "reg_token": 3, "project.weight": 2}
    needed |= {name: ndim for name, ndim in optional.items() if name in values} | layouts.head(values)
    layouts.check(values, needed, source)
    class_token, distilled = "cls_token" in values, "dist_token" in values
    dim, patch = values.get("cls_token", values["pos_embed"]).shape[-1], values["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max((int(match[1]) for key in values if (match := re.match(r"blocks\.(\d+)\.", key))), default=-1)
    fields: dict[str, Any] = {
        "dim": dim,
        "depth": depth,
        "patch_size": patch,
        "heads": hints.heads or _usual_heads(dim, hints, source),
    }
    if fields["heads"] <= 0 or dim % fields["heads"]:
        raise UserError(
            f"{source} has {dim} features, which {fields['heads']} heads cannot share; correct their number."
        )
    fields["mlp_dim"] = layouts.mlp_dim(values[fc1], _gates(values[fc1], values[fc2], hints, source))
    scaled = "blocks.0.ls1.gamma" in values
    fields |= {"gelu": hints.gelu, "norm_eps": _norm_eps(values, hints, source), "class_token": class_token}
    fields["pool"] = _pool(values, hints, source, distilled)
    registers = values["reg_token"].shape[1] if "reg_token" in values else 0
    fields |= {"registers": registers, "pre_norm": "norm_pre.weight" in values}
    fields["qk_norm"] = "blocks.0.attn.q_norm.weight" in values
    fields["projection"] = values["project.weight"].shape[0] if "project.weight" in values else 0
    side = _side(values["pos_embed"].shape[1], class_token + distilled, registers, scaled, hints, source)
    fields["spare"] = hints.image_size % patch if hints.image_size // patch == side else 0
    kinds = [
        base
        for base, variant in vit.VARIANTS.items()
        if (variant.get("distilled", False), variant.get("layer_scale", False)) == (distilled, scaled)
    ]
    if not kinds or depth == 0:
        raise UserError(f"{source} has {depth} blocks of {dim} features, distilled and scaled: no ViT or DeiT here is.")
    family = next((one for one in FAMILIES if one in hints.name), hints.name.partition("_")[0])

    def changes(base: str) -> dict[str, object]:
        return {field: value for field, value in fields.items() if vit.VARIANTS[base][field] != value}

    base = min(
        kinds, key=lambda base: (not {"dim", "depth"}.isdisjoint(changes(base)), base.partition("_")[0] != family)
    )
    return models.renamed(base, changes(base)), side * patch + fields["spare"]


def _gates(fc1: np.ndarray, fc2: np.ndarray, hints: Hints, source: str) -> int:
    """Outputs of fc1 for each hidden unit; UserError where tensors and card differ over SwiGLU."""
    gates = vit.gates(hints.gelu)
    if fc1.shape[0] != gates * fc2.shape[1]:
        said = "SwiGLU" if gates == 2 else "a plain MLP"
        raise UserError(
            f"{source} has {fc1.shape[0]} outputs of fc1 and {fc2.shape[1]} inputs of fc2, which are not those of "
            f"{said}, as its name or card has it; SwiGLU is read of the names of timm's DINOv2, and of transformers'."
        )
    return gates


def _norm_eps(values: Mapping[str, np.ndarray], hints: Hints, source: str) -> float:
    if "norm_pre.weight" in values and not hints.norm_eps:
        raise UserError(
            f"{source} has a LayerNorm before its blocks, as CLIP has, and nothing tells the epsilon of LayerNorms; "
            "give the file timm's name of it, such as vit_base_patch16_clip_224.safetensors."
        )
    return hints.norm_eps or vit.NORM_EPS


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
    """What `models.vit.ViT` calls it. A last LayerNorm `fc_norm` comes with the mean, and the tensors of attention
    pooling with that, unless a card says otherwise."""
    behind, attends = FC_NORM in values, "attn_pool.latent" in values
    if hints.pool == "concat":
        return hints.pool
    if hints.pool == "map" or (attends and not hints.pool):
        if behind or not attends:
            raise UserError(f"{source} has global_pool = 'map', which its tensors (attn_pool, norm) are not those of.")
        return "map"
    if hints.pool == "avg" or (behind and not hints.pool):
        if distilled:
            raise UserError(f"{source} is distilled and takes the mean of its tokens, which can not be read.")
        return "avg" if behind else "normavg"
    if "cls_token" not in values:
        raise UserError(
            f"{source} has no class token (cls_token), and nothing tells what it pools instead; write "
            '{"model_args": {"global_pool": "avg"}} into a config.json beside the file.'
        )
    one_head = "head.weight" in values and not any(name.startswith("head_dist.") for name in values)
    return "first" if distilled and one_head else "token"


def _side(positions: int, first: int, registers: int, scaled: bool, hints: Hints, source: str) -> int:
    """Patches along a side. What comes before them has positions or not: of DeiT-III's class token, and of no other
    here, that is found out; of registers, where it cannot be mistaken."""
    prefix, bare = first + registers, hints.embed_class is False
    sides = {count: math.isqrt(max(count, 0)) for count in (positions, positions - prefix)}
    squares = [count for count, side in sides.items() if side and side**2 == count]
    if registers and hints.embed_class is None and len(squares) > 1 and prefix:
        squares = []
    elif not (registers and hints.embed_class is None):
        wanted = positions if (scaled or bare) and positions in squares else positions - prefix
        squares = [count for count in squares if count == wanted]
    if not squares:
        raise UserError(
            f"{source} has {positions} positions for {prefix} tokens and a square of patches, which do not add up: "
            "models of rectangular images can not be read, and where the class token has no position, "
            'config.json says so by {"model_args": {"no_embed_class": true}}.'
        )
    return sides[squares[0]]


def fitted(values: Mapping[str, np.ndarray], model: Any) -> Mapping[str, np.ndarray]:
    """Positions of registers added to them."""
    first, count, table = model.first, model.registers, values["pos_embed"]
    if not count or table.shape[1] != model.prefix + (model.image_size // model.patch_size) ** 2:
        return values
    there = table[:, first : first + count]
    rest = np.concatenate([table[:, :first], table[:, first + count :]], 1)
    return {**values, "pos_embed": rest, "reg_token": values["reg_token"] + there}


def rule(path: str, shape: tuple[int, ...]) -> Rule:
    """How our parameter at `path` is made."""
    name = path.replace("blocks_", "blocks.").replace("/", ".")
    if path in layouts.PATCH_EMBED:
        return layouts.PATCH_EMBED[path]
    if path == "pos_embed":
        # DeiT-III, DINOv2 with registers and big_vision add no position to the class token.
        return Rule((name,), lambda w: w if w.shape[1] != shape[1] - 1 else np.pad(w, ((0, 0), (1, 0), (0, 0))))
    if name.endswith("_gamma"):
        return Rule((name.replace("_gamma", ".gamma"),), np.asarray)
    if name.endswith(".kernel"):
        return Rule((name.removesuffix("kernel") + "weight",), np.transpose)
    return Rule((re.sub(r"\.scale$", ".weight", name),), np.asarray)
