"""ViT, DeiT, Swin, DINOv2, and the vision part of CLIP and SigLIP, as transformers saves them: `huggingface:DIR` or
`huggingface:HUB_ID[@REVISION]`.

Names are translated to timm's, and the rest is `weights.timm`. DINOv2, CLIP and SigLIP without a classifier give
features: what transformers calls `pooler_output`, or, where there is a visual projection, `image_embeds`.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data.preprocess import MAX_SIZE
from lraqvit_jax.models import swin, vit
from lraqvit_jax.weights import Pretrained, cards, hub, layouts, processors, tensors, wrappers
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.sources import timm

TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Model types that have text as well, and that of their vision part."""
EPS = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov2_with_registers", *TOWERS.values()), vit.NORM_EPS),
    "swin": swin.NORM_EPS,
}
"""Our LayerNorm epsilon for each model type that can be read."""
DEFAULT_EPS = {"vit": 1e-12, "deit": 1e-12, "clip_vision_model": 1e-5}
"""transformers' where it is not ours."""
DEFAULT_ACTIVATION = {"clip_vision_model": "quick_gelu", "siglip_vision_model": "gelu_pytorch_tanh"}
"""Where it is not "gelu"."""
FEATURES = ("dinov2", "dinov2_with_registers", *TOWERS.values())
"""Types of which a model without a classifier gives features."""
GELUS = {
    **dict.fromkeys(("gelu", "gelu_python"), "exact"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "tanh"),
    "quick_gelu": "quick",
}
"""Our name of each activation."""
_DINOV2 = {"crop_pct": 0.875, "interpolation": "bicubic", "crop_mode": "center", **timm.IMAGENET}
PUBLISHED = {
    "vit": {"crop_pct": 1.0, "interpolation": "bilinear", **timm.HALF},
    "deit": {"crop_pct": 0.875, "interpolation": "bicubic", **timm.IMAGENET},
    "swin": {"crop_pct": 1.0, "interpolation": "bicubic", **timm.IMAGENET},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "clip_vision_model": {"crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center", **timm.CLIP},
    "siglip_vision_model": {"crop_pct": 1.0, "interpolation": "bicubic", **timm.HALF},
}
"""How images are prepared for the models that Google, Facebook, Microsoft and OpenAI have published; squashed, unless
it is said."""
HALLMARK = "embeddings.patch_embeddings.projection.weight"
TOWER_HALLMARK = "embeddings.patch_embedding.weight"
"""That of a vision part of `TOWERS`."""
HEADS = 12
"""Of a ViT whose config leaves it open."""
MEND = "put preprocessor_config.json beside it, or set data.mean, data.std, data.crop_pct and data.interpolation"
NAMES = (
    (r"^(vit|deit|swin)\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.attention\.in_proj_", "attn_pool.qkv."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^visual_projection\.", "project."),
    (r"^encoder\.layers\.(?=\d+\.(layer_norm|self_attn|mlp))", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
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
    """Reads a transformers checkpoint of image classification, or of DINOv2, CLIP or SigLIP, which give features.

    Raises:
        UserError: missing files, another model type, a field that says what can not be read.
    """
    source = f"huggingface:{name}"
    path = hub.find(name, ("model.safetensors", tensors.INDEX), ("preprocessor_config.json",), pickles=True)
    where = path.parent / "config.json"
    config = _vision(_json(where), str(where))
    hints = _hints(config, name)
    kind = hints.name
    cards.check(f"huggingface.{kind}", config, str(where))
    hallmark = TOWER_HALLMARK if kind in TOWERS.values() else HALLMARK
    values = wrappers.unwrapped(tensors.read(path), hallmark, source)
    if kind in FEATURES:
        values, hints = _pooled(values, hints, kind, source)
    values = rename(values, hints.qkv_bias)
    prepared, side = _preparation(path.parent / "preprocessor_config.json", kind, source)
    pretrained = timm.from_tensors(values, hints, source, tensors.sha256(path), prepared)
    if kind in FEATURES:
        resampling = "antialiased" if kind == "dinov2_with_registers" else "bicubic"
        pretrained = pretrained._replace(resampling=resampling)
    grid = pretrained.preprocess.size
    if kind.startswith("dinov2") and side and side != grid:
        prepare = dataclasses.replace(pretrained.preprocess, size=side)
        pretrained, side = pretrained._replace(preprocess=prepare, grid=grid), grid
    _check_size(grid, hints.image_size, side, source)
    cards.agree(f"huggingface.{kind}", config, timm.shapes(pretrained, config), str(where))
    _check_labels(config, pretrained.num_classes, str(where))
    return pretrained._replace(class_names=cards.class_names(config.get("id2label"), pretrained.num_classes))


def _vision(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The part of a config that is of vision: all of it, where there is no text."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TOWERS:
        return config
    cards.check(f"huggingface.{kind}", config, where)
    parts = [config.get(name) or {} for name in ("vision_config", "vision_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{where} has no object of fields in vision_config; put the config right.")
    said = {name: value for name, value in {**parts[0], **parts[1]}.items() if name != "projection_dim"}
    projection = {name: config[name] for name in ("projection_dim", "architectures") if name in config}
    return {"model_type": TOWERS[kind], **said, **projection}


def _pooled(
    values: Mapping[str, np.ndarray], hints: Hints, kind: str, source: str
) -> tuple[dict[str, np.ndarray], Hints]:
    """The tensors that are used, and what a model of `FEATURES` pools: with a classifier, as transformers' class for
    image classification does."""
    classifies = not {"classifier.weight", "head.weight"}.isdisjoint(values)
    if kind == "siglip_vision_model":
        used = {name: value for name, value in values.items() if not (classifies and name.startswith("head."))}
        return used, hints._replace(pool="avg" if classifies else "map", headless=not classifies)
    if kind == "clip_vision_model" and classifies:
        raise UserError(
            f"{source} classifies the mean of the patches' tokens without the last LayerNorm, which can not be read; "
            "save its vision part alone, a CLIPVisionModel."
        )
    return dict(values), hints._replace(pool="concat" if classifies else "token", headless=not classifies)


def _check_size(own: int, size: int, side: int, source: str) -> None:
    """Raises UserError where config and preprocessor give images of another size than the model's."""
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
        name = functools.reduce(lambda name, pair: re.sub(pair[0], pair[1], name), NAMES, key)
        # CLIP's and SigLIP's are those of an embedding and a vector.
        renamed[name] = value.reshape(1, -1, value.shape[-1]) if name in ("cls_token", "pos_embed") else value
    if {"reg_token", "pos_embed"} <= {*renamed}:  # transformers' registers have no positions.
        table, none = renamed["pos_embed"], np.zeros_like(renamed["reg_token"])
        renamed["pos_embed"] = np.concatenate([table[:, :1], none, table[:, 1:]], 1)
    for stem in {key.removesuffix("q.weight") for key in renamed if key.endswith(".attn.q.weight")}:
        _join(renamed, stem, "weight")
        if qkv_bias:
            _join(renamed, stem, "bias")
    for end in ("weight", "bias"):
        _split(renamed, end)
        for stem in {key.removesuffix(f"gate_proj.{end}") for key in renamed if key.endswith(f".mlp.gate_proj.{end}")}:
            _join(renamed, stem, end, ("gate_proj", "up_proj"), "fc1")
    return renamed if qkv_bias else layouts.with_bias(renamed)


def _split(renamed: dict[str, np.ndarray], end: str) -> None:
    """Replaces query, key and value of attention pooling by q and kv."""
    joined = renamed.pop(f"attn_pool.qkv.{end}", None)
    if joined is not None:
        dim = len(joined) // 3
        renamed |= {f"attn_pool.q.{end}": joined[:dim], f"attn_pool.kv.{end}": joined[dim:]}


def _join(
    renamed: dict[str, np.ndarray], stem: str, end: str, parts: Sequence[str] = tuple("qkv"), whole: str = "qkv"
) -> None:
    """Replaces q, k, v by qkv. Where one is missing, all stay, for the strict conversion to name."""
    names = [f"{stem}{part}.{end}" for part in parts]
    if all(name in renamed for name in names):
        try:
            joined = np.concatenate([renamed[name] for name in names])
        except ValueError as error:
            raise UserError(f"{', '.join(names)} do not fit together ({error}): these weights are broken.") from error
        for name in names:
            del renamed[name]
        renamed[f"{stem}{whole}.{end}"] = joined


def _hints(config: Mapping[str, Any], name: str) -> Hints:
    """What no tensor tells, from config.json."""
    kind, activation = config.get("model_type"), config.get("hidden_act")
    if not isinstance(kind, str) or kind not in EPS:
        raise UserError(f"{name} is a {short(repr(kind))} model; these can be read: {', '.join((*EPS, *TOWERS))}.")
    activation = DEFAULT_ACTIVATION.get(kind, "gelu") if activation is None else activation
    if not isinstance(activation, str) or activation not in GELUS:
        raise UserError(f"{name} uses the activation {short(repr(activation))}; these can be read: {', '.join(GELUS)}.")
    # transformers' configs say 1e-12 for ViT where the weights were trained with 1e-6. Its Swin has 1e-5 in some norms
    # whatever the config says.
    eps = config.get("layer_norm_eps")
    eps = DEFAULT_EPS.get(kind, EPS[kind]) if eps is None else eps
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
    gated = config.get("use_swiglu_ffn")
    if gated is not None and not isinstance(gated, bool):
        raise UserError(f"{name} has use_swiglu_ffn = {short(repr(gated))} in its config.json; it is true or false.")
    return Hints(
        kind,
        size,
        heads,
        gelu="swiglu" if gated else GELUS[activation],
        norm_eps=float(eps),
        qkv_bias=bias is not False,
        embed_class=True,
        mend="write num_attention_heads into config.json",
    )


def _preparation(path: pathlib.Path, kind: str, source: str) -> tuple[dict[str, Any], int]:
    """The fields of `Preprocess` but the size, and the side of the images that the processor makes; 0 where it leaves
    them as they are."""
    if not path.is_file():
        timm.warn_assumed(source, PUBLISHED[kind], kind, MEND)
        return {"crop_mode": "squash", **PUBLISHED[kind]}, 0
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
