"""ViT, DeiT and Swin as transformers saves them: `huggingface:DIR` or `huggingface:HUB_ID[@REVISION]`.

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
from lraqvit_jax.models import swin, vit
from lraqvit_jax.weights import Pretrained, timm

EPS = {"vit": vit.NORM_EPS, "deit": vit.NORM_EPS, "swin": swin.NORM_EPS}
"""LayerNorm epsilon of each model type that can be read."""
GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
NAMES = (
    (r"^(vit|deit|swin)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^(encoder\.layer|layers)\.(?=\d+\.[^b])", "blocks."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.((attention|self)\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.((attention|self)\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.((attention|self)\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(self|relative_position_bias)\.relative_position_", ".attn.relative_position_"),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"(?<!attention)\.(output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)


def read(name: str) -> Pretrained:
    """Reads a transformers checkpoint of ViT, DeiT or Swin image classification.

    Raises:
        UserError: missing files, another model type, an activation or epsilon that our models do not have.
    """
    path = hub.find(name, ("model.safetensors",))
    config = _json(path.parent / "config.json")
    _check(config, name)
    values = rename(tensors.read(path), bool(config.get("qkv_bias", True)))
    preprocessor = path.parent / "preprocessor_config.json"
    fields = _json(preprocessor) if preprocessor.is_file() else {}
    card: dict[str, Any] = {"crop_pct": 0.9 if fields.get("do_center_crop") else 1.0}
    if "image_mean" in fields and "image_std" in fields:
        card |= {"mean": fields["image_mean"], "std": fields["image_std"]}
    if config.get("image_size"):
        card["input_size"] = [config["image_size"]]
    gelu = GELUS[config.get("hidden_act", "gelu")]
    found = timm.from_tensors(values, config["model_type"], f"huggingface:{name}", tensors.sha256(path), card, gelu)
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
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind not in EPS:
        raise UserError(f"{name} is a {kind!r} model; these can be read: {', '.join(EPS)}.")
    if activation not in GELUS:
        raise UserError(f"{name} uses the activation {activation!r}; these can be read: {', '.join(GELUS)}.")
    # transformers' configs say 1e-12 for ViT where the weights were trained with 1e-6: no difference at 1e-4 of logits.
    if not 0 <= config.get("layer_norm_eps", EPS[kind]) <= EPS[kind]:
        raise UserError(f"{name} uses LayerNorm epsilon {config['layer_norm_eps']}; our model has {EPS[kind]}.")


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); a directory of save_pretrained has it.") from error
