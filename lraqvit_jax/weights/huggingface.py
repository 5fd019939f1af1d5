"""ViT and DeiT as transformers saves them: `huggingface:DIR` (of `save_pretrained`) or `huggingface:HUB_ID[@REVISION]`.

Names are translated to timm's, and the rest is `weights.timm`.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax import hub, tensors
from lraqvit_jax.errors import UserError
from lraqvit_jax.weights import Pretrained, timm

MODELS = ("vit", "deit")
EPS = 1e-6
NAMES = (
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"(?<!attention)\.(output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)


def read(name: str) -> Pretrained:
    """Reads a transformers checkpoint of ViT or DeiT image classification.

    Raises:
        UserError: missing files, another model type, an activation or epsilon that our models do not have.
    """
    path = hub.find(name, ("model.safetensors",))
    config = _json(path.parent / "config.json")
    _check(config, name)
    values = rename(tensors.read(path), bool(config.get("qkv_bias", True)))
    preprocessor = path.parent / "preprocessor_config.json"
    fields = _json(preprocessor) if preprocessor.is_file() else {}
    card = {"crop_pct": 0.9 if fields.get("do_center_crop") else 1.0}
    if "image_mean" in fields and "image_std" in fields:
        card |= {"mean": fields["image_mean"], "std": fields["image_std"]}
    found = timm.from_tensors(values, config["model_type"], f"huggingface:{name}", tensors.sha256(path), card)
    labels = config.get("id2label", {})
    names = [labels[str(index)] for index in range(len(labels))] if len(labels) == found.num_classes else []
    return found._replace(class_names=names)


def rename(values: Mapping[str, np.ndarray], qkv_bias: bool = True) -> dict[str, np.ndarray]:
    """transformers' names to timm's; separate q, k, v are joined. A layer without bias gets zeros."""
    renamed: dict[str, np.ndarray] = {}
    for key, value in values.items():
        renamed[functools.reduce(lambda name, pair: re.sub(pair[0], pair[1], name), NAMES, key)] = value
    for key in [key for key in renamed if key.endswith(".attn.q.weight")]:
        stem = key.removesuffix("q.weight")
        parts = [renamed.pop(f"{stem}{letter}.weight") for letter in "qkv"]
        renamed[f"{stem}qkv.weight"] = np.concatenate(parts)
        biases = (
            [renamed.pop(f"{stem}{letter}.bias") for letter in "qkv"] if qkv_bias else [np.zeros(len(p)) for p in parts]
        )
        renamed[f"{stem}qkv.bias"] = np.concatenate(biases)
    return renamed


def _check(config: Mapping[str, Any], name: str) -> None:
    if config.get("model_type") not in MODELS:
        raise UserError(f"{name} is a {config.get('model_type')!r} model; these can be read: {', '.join(MODELS)}.")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{name} uses the activation {config['hidden_act']!r}; our ViT has the exact GELU.")
    # transformers' configs say 1e-12 for ViT where the weights were trained with 1e-6: no difference at 1e-4 of logits.
    if not 0 <= config.get("layer_norm_eps", EPS) <= EPS:
        raise UserError(f"{name} uses LayerNorm epsilon {config['layer_norm_eps']}; our ViT has {EPS}.")


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); a directory of save_pretrained has it.") from error
