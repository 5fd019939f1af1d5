"""ViT, DeiT and Swin as transformers saves them: `huggingface:DIR` or `huggingface:HUB_ID[@REVISION]`.

Names are translated to timm's, and the rest is `weights.timm`.
"""

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data.preprocess import MAX_SIZE
from lraqvit_jax.models import swin, vit
from lraqvit_jax.weights import Pretrained, cards, hub, layouts, processors, tensors, wrappers
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.sources import timm

EPS = {"vit": vit.NORM_EPS, "deit": vit.NORM_EPS, "swin": swin.NORM_EPS}
"""Our LayerNorm epsilon for each model type that can be read."""
DEFAULT_EPS = {"vit": 1e-12, "deit": 1e-12, "swin": 1e-5}
GELUS = {
    **dict.fromkeys(("gelu", "gelu_python"), "exact"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "tanh"),
    "quick_gelu": "quick",
}
"""Our name of each activation."""
PUBLISHED = {
    "vit": {"crop_pct": 1.0, "interpolation": "bilinear", **timm.HALF},
    "deit": {"crop_pct": 0.875, "interpolation": "bicubic", **timm.IMAGENET},
    "swin": {"crop_pct": 1.0, "interpolation": "bicubic", **timm.IMAGENET},
}
"""How images are prepared for the models that Google, Facebook and Microsoft have published."""
HALLMARK = "embeddings.patch_embeddings.projection.weight"
HEADS = 12
"""Of a ViT whose config leaves it open."""
MEND = "put preprocessor_config.json beside it, or set data.mean, data.std, data.crop_pct and data.interpolation"
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
        UserError: missing files, another model type, a field that says what can not be read.
    """
    source = f"huggingface:{name}"
    path = hub.find(name, ("model.safetensors", tensors.INDEX), ("preprocessor_config.json",), pickles=True)
    where = path.parent / "config.json"
    config = _json(where)
    hints = _hints(config, name)
    kind = hints.name
    cards.check(f"huggingface.{kind}", config, str(where))
    values = rename(wrappers.unwrapped(tensors.read(path), HALLMARK, source), hints.qkv_bias)
    prepared, side = _preparation(path.parent / "preprocessor_config.json", kind, source)
    pretrained = timm.from_tensors(values, hints, source, tensors.sha256(path), prepared)
    _check_size(pretrained, hints.image_size, side, source)
    cards.agree(f"huggingface.{kind}", config, timm.shapes(pretrained, config), str(where))
    _check_labels(config, pretrained.num_classes, str(where))
    return pretrained._replace(class_names=cards.class_names(config.get("id2label"), pretrained.num_classes))


def _check_size(pretrained: Pretrained, size: int, side: int, source: str) -> None:
    """Raises UserError where config and preprocessor give images of another size than the model's."""
    own = pretrained.preprocess.size
    for given, where in ((size, "config.json says image_size"), (side, "preprocessor_config.json makes images of")):
        if given and given != own:
            raise UserError(f"{source} has the weights of {own} x {own} pixels and {where} {given}; put it right.")


def _check_labels(config: Mapping[str, Any], classes: int, where: str) -> None:
    """Raises UserError where the config has another number of classes than the head, if there is one."""
    labels = config.get("id2label")
    counts = [len(labels)] if isinstance(labels, dict) else []
    wrong = [count for count in (*counts, config.get("num_labels")) if count is not None and count != classes]
    if classes and wrong:
        raise UserError(
            f"{where} has {short(repr(wrong[0]))} labels (id2label, num_labels) and the head has {classes}; put right "
            "the config, or take these fields out of it."
        )


def rename(values: Mapping[str, np.ndarray], qkv_bias: bool = True) -> dict[str, np.ndarray]:
    """transformers' names to timm's; separate q, k, v are joined, their biases where they may have some, else zeros."""
    renamed: dict[str, np.ndarray] = {}
    for key, value in values.items():
        renamed[functools.reduce(lambda name, pair: re.sub(pair[0], pair[1], name), NAMES, key)] = value
    for stem in {key.removesuffix("q.weight") for key in renamed if key.endswith(".attn.q.weight")}:
        _join(renamed, stem, "weight")
        if qkv_bias:
            _join(renamed, stem, "bias")
    return renamed if qkv_bias else layouts.with_bias(renamed)


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


def _hints(config: Mapping[str, Any], name: str) -> Hints:
    """What no tensor tells, from config.json."""
    kind, activation = config.get("model_type"), config.get("hidden_act")
    activation = "gelu" if activation is None else activation
    if not isinstance(kind, str) or kind not in EPS:
        raise UserError(f"{name} is a {short(repr(kind))} model; these can be read: {', '.join(EPS)}.")
    if not isinstance(activation, str) or activation not in GELUS:
        raise UserError(f"{name} uses the activation {short(repr(activation))}; these can be read: {', '.join(GELUS)}.")
    # transformers' configs say 1e-12 for ViT where the weights were trained with 1e-6. Its Swin has 1e-5 in some norms
    # whatever the config says.
    eps = config.get("layer_norm_eps")
    eps = DEFAULT_EPS[kind] if eps is None else eps
    if not files.number(eps):
        raise UserError(f"{name} uses LayerNorm epsilon {short(repr(eps))}, which is not a number.")
    if eps != EPS[kind] and (kind == "swin" or not 0 < eps < 1 or float(f"{eps:.0e}") != eps):
        raise UserError(f"{name} uses LayerNorm epsilon {eps}; our model has {EPS[kind]}.")
    bias = config.get("qkv_bias")
    if bias is not None and not isinstance(bias, bool):
        raise UserError(f"{name} has qkv_bias = {short(repr(bias))} in its config.json; it is true or false.")
    heads = config.get("num_attention_heads", HEADS if "hidden_size" in config else 0) if kind != "swin" else 0
    if not files.whole(heads, 0 if "num_attention_heads" not in config else 1, MAX_SIZE):
        raise UserError(f"{name} has num_attention_heads = {short(repr(heads))}; it is a whole number.")
    size = _pair(config.get("image_size"), "image_size")
    return Hints(
        kind,
        size,
        heads,
        gelu=GELUS[activation],
        norm_eps=float(eps),
        qkv_bias=bias is not False,
        mend="write num_attention_heads into config.json",
    )


def _preparation(path: pathlib.Path, kind: str, source: str) -> tuple[dict[str, Any], int]:
    """The fields of `Preprocess` but the size, and the side of the images that the processor makes; 0 where it leaves
    them as they are."""
    if not path.is_file():
        timm.warn_assumed(source, PUBLISHED[kind], kind, MEND)
        return PUBLISHED[kind] | {"crop_mode": "squash"}, 0
    fields = _json(path)
    cards.check("huggingface.processor", fields, str(path))
    return processors.preparation(fields, kind)


def _pair(size: Any, name: str) -> int:
    """Pixels, from a number or two equal ones; 0 if there is none."""
    sides = size if isinstance(size, list) else [size or 0]
    if len(set(map(repr, sides))) != 1 or len(sides) > 2 or not files.whole(sides[0], 0, MAX_SIZE):
        raise UserError(f"config.json has the {name} {short(repr(size))}; here images are square, give pixels.")
    return int(sides[0])


def _json(path: pathlib.Path) -> dict[str, Any]:
    return files.json_object(path, "a directory of save_pretrained has it")
