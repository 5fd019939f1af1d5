"""ViT, DeiT and Swin as transformers saves them: `huggingface:DIR` or `huggingface:HUB_ID[@REVISION]`.

Names are translated to timm's, and the rest is `weights.timm`.
"""

import functools
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data.preprocess import MAX_SIZE
from lraqvit_jax.models import swin, vit
from lraqvit_jax.weights import Pretrained, hub, tensors
from lraqvit_jax.weights.sources import timm

EPS = {"vit": vit.NORM_EPS, "deit": vit.NORM_EPS, "swin": swin.NORM_EPS}
"""Our LayerNorm epsilon for each model type that can be read."""
GELUS = {"gelu": "", "gelu_new": "_tanh", "gelu_pytorch_tanh": "_tanh", "gelu_fast": "_tanh"}
"""Suffix of our model for each activation."""
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Interpolation by PIL's number."""
USUAL = {"crop_pct": 1.0, "interpolation": "bicubic"}
WHITE = 255
"""What pixels are divided by, in transformers' processors as here."""
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
    path = hub.find(name, ("model.safetensors",), ("preprocessor_config.json",))
    config = _json(path.parent / "config.json")
    suffix = _suffix(config, name)
    values = rename(tensors.read(path), bool(config.get("qkv_bias", True)))
    preprocessor = path.parent / "preprocessor_config.json"
    card = _card(_json(preprocessor)) if preprocessor.is_file() else {}
    if config.get("image_size"):
        card["input_size"] = [_side(config["image_size"])]
    pretrained = timm.from_tensors(
        values,
        config["model_type"],
        f"huggingface:{name}",
        tensors.sha256(path),
        card,
        suffix,
        usual=USUAL,
        mend="put preprocessor_config.json beside it, or set data.mean, data.std, data.crop_pct and data.interpolation",
    )
    return pretrained._replace(class_names=_class_names(config.get("id2label"), pretrained.num_classes))


def _class_names(labels: Any, count: int) -> list[str]:
    """The names in the order of their numbers; none where they are not one for each class."""
    numbers = [str(index) for index in range(count)]
    if not isinstance(labels, dict) or sorted(labels) != sorted(numbers):
        return []
    return [str(labels[number]) for number in numbers]


def rename(values: Mapping[str, np.ndarray], qkv_bias: bool = True) -> dict[str, np.ndarray]:
    """transformers' names to timm's; separate q, k, v are joined. A layer without bias gets zeros."""
    renamed: dict[str, np.ndarray] = {}
    for key, value in values.items():
        renamed[functools.reduce(lambda name, pair: re.sub(pair[0], pair[1], name), NAMES, key)] = value
    for stem in {key.removesuffix("q.weight") for key in renamed if key.endswith(".attn.q.weight")}:
        _join(renamed, stem, "weight")
        if qkv_bias:
            _join(renamed, stem, "bias")
        elif f"{stem}qkv.weight" in renamed:
            renamed[f"{stem}qkv.bias"] = np.zeros(renamed[f"{stem}qkv.weight"].shape[:1], np.float32)
    return renamed


def _join(renamed: dict[str, np.ndarray], stem: str, end: str) -> None:
    """Replaces q, k, v by qkv. Where one is missing, all stay, for the strict conversion to name."""
    names = [f"{stem}{letter}.{end}" for letter in "qkv"]
    if all(name in renamed for name in names):
        try:
            joined = np.concatenate([renamed[name] for name in names])
        except ValueError as error:
            raise UserError(f"{', '.join(names)} do not fit together ({error}): these weights are broken.") from error
        for name in names:
            del renamed[name]
        renamed[f"{stem}qkv.{end}"] = joined


def _card(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's card would say, from preprocessor_config.json.

    Raises:
        UserError: it asks for what `Preprocess` does not do.
    """
    card: dict[str, Any] = {"crop_pct": 1.0, "mean": fields.get("image_mean"), "std": fields.get("image_std")}
    resample = fields.get("resample")
    if resample is not None:
        if type(resample) is not int or resample not in RESAMPLE:
            raise UserError(f"preprocessor_config.json has resample {short(repr(resample))}, of {RESAMPLE} none.")
        card["interpolation"] = RESAMPLE[resample]
    size, crop = _side(fields.get("size")), _side(fields.get("crop_size"))
    if fields.get("do_center_crop"):
        if not 0 < crop <= size:
            raise UserError(f"preprocessor_config.json crops {crop} pixels out of {size}; correct crop_size and size.")
        card["crop_pct"] = crop / size
    factor = fields.get("rescale_factor", 1 / WHITE)
    if not fields.get("do_rescale", True) or not files.number(factor) or not math.isclose(factor * WHITE, 1):
        raise UserError(
            "preprocessor_config.json does not scale pixels by 1/255 (do_rescale, rescale_factor), as is done here; "
            "name other weights."
        )
    if not fields.get("do_normalize", True):
        card |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return card


def _side(size: Any) -> int:
    """Pixels, from a number, a list of them, or a dict such as {"shortest_edge": 256}; 0 if there is none."""
    sides = list(size.values()) if isinstance(size, Mapping) else size if isinstance(size, list) else [size or 0]
    if not all(files.whole(side, 0, MAX_SIZE) for side in sides):
        raise UserError(f"The JSON beside the weights has the size {short(repr(size))}; give pixels.")
    return min(sides, default=0)


def _suffix(config: Mapping[str, Any], name: str) -> str:
    """Suffix of our model's name for the activation and the LayerNorm epsilon of this config."""
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if not isinstance(kind, str) or kind not in EPS:
        raise UserError(f"{name} is a {short(repr(kind))} model; these can be read: {', '.join(EPS)}.")
    if not isinstance(activation, str) or activation not in GELUS:
        raise UserError(f"{name} uses the activation {short(repr(activation))}; these can be read: {', '.join(GELUS)}.")
    # transformers' configs say 1e-12 for ViT where the weights were trained with 1e-6. Its Swin has 1e-5 in some norms
    # whatever the config says.
    eps = config.get("layer_norm_eps", 1e-12 if kind != "swin" else EPS[kind])
    if not files.number(eps):
        raise UserError(f"{name} uses LayerNorm epsilon {short(repr(eps))}, which is no number.")
    if eps != EPS[kind] and (kind == "swin" or eps <= 0 or float(f"{eps:.0e}") != eps):
        raise UserError(f"{name} uses LayerNorm epsilon {eps}; our model has {EPS[kind]}.")
    return GELUS[activation] + (f"_eps{eps:.0e}" if eps != EPS[kind] else "")


def _json(path: pathlib.Path) -> dict[str, Any]:
    return files.json_object(path, "a directory of save_pretrained has it")
