"""The right answers of `tests.slow.cards`: tiny models saved as their owners save them, loaded by their own code."""

import contextlib
import functools
import io
import json
import pathlib
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.golden import recipe
from tests.parity import pytorch

ARGS = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 16}
PREPARED = {"input_size": [3, 16, 16], "mean": [0.3, 0.4, 0.5], "std": [0.5, 0.6, 0.7], "crop_pct": 0.8}
CONFIG = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 192}
SIDES = {"image_size": 16, "patch_size": 8}
SWIN = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 16, "patch_size": 2}
PROCESSOR = {"size": {"height": 16, "width": 16}, "image_mean": [0.3, 0.4, 0.5], "image_std": [0.5, 0.6, 0.7]}
CLASSES = 3
_BLOCKS = {name: value for name, value in (CONFIG | SIDES).items() if name != "intermediate_size"}
_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
_TOWERS = {"vision_config": CONFIG | SIDES, "text_config": _TEXT, "projection_dim": 24}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT", "ViTForImageClassification", CONFIG | SIDES | {"num_labels": CLASSES}),
    "deit": ("DeiT", "DeiTForImageClassification", CONFIG | SIDES | {"num_labels": CLASSES}),
    "swin": ("Swin", "SwinForImageClassification", SWIN | {"num_labels": CLASSES}),
    "dinov2": ("Dinov2", "Dinov2ForImageClassification", _BLOCKS | {"num_labels": CLASSES}),
    "dinov2_with_registers": ("Dinov2WithRegisters", "Dinov2WithRegistersModel", _BLOCKS),
    "clip_vision_model": ("CLIPVision", "CLIPVisionModelWithProjection", CONFIG | SIDES | {"projection_dim": 24}),
    "siglip_vision_model": ("SiglipVision", "SiglipVisionModel", CONFIG | SIDES),
    "clip": ("CLIP", "CLIPModel", _TOWERS),
    "siglip": ("Siglip", "SiglipModel", {name: _TOWERS[name] for name in ("vision_config", "text_config")}),
}
"""By type, the names of transformers' config and model, and the fields."""


def photo() -> Image.Image:
    """Of another shape than the model's images, its sides even."""
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (24, 32, 3), np.uint8))


def _filled(model: torch.nn.Module) -> torch.nn.Module:
    values = recipe.weights({name: tuple(value.shape) for name, value in model.named_parameters()}, seed=3)
    model.load_state_dict({name: torch.as_tensor(value) for name, value in values.items()}, strict=False)
    return model.eval()


@functools.cache
def _timm_state() -> dict[str, torch.Tensor]:
    model = pytorch.timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **ARGS)
    return _filled(model).state_dict()


def write_timm(folder: pathlib.Path, case: Any) -> str:
    """One card with the field set, nested or of old."""
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        pytorch.save_file(
            {name: value.contiguous() for name, value in _timm_state().items()}, folder / "model.safetensors"
        )
    card = {"architecture": "vit_tiny_patch16_224", "num_classes": CLASSES, "model_args": dict(ARGS)}
    prepared = dict(PREPARED, num_classes=CLASSES)
    inner = case.kind.partition(".")[2]
    {"": card, "flat": card, "pretrained_cfg": prepared, "model_args": card["model_args"]}[inner][case.field] = (
        case.value
    )
    card = {**prepared, **card} if inner == "flat" else {"pretrained_cfg": prepared, **card}
    (folder / "config.json").write_text(json.dumps(card))
    return f"timm:{folder}"


def timm_logits(folder: pathlib.Path, image: Image.Image) -> np.ndarray:
    """timm's own, by `local-dir:` for a nested card; of an old one, by its fields."""
    card = json.loads((folder / "config.json").read_text())
    if "pretrained_cfg" in card:
        model = pytorch.timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = pytorch.timm.data.resolve_model_data_config(model)
    else:
        args = card.get("model_args") or {}
        model = pytorch.timm.create_model(card["architecture"], num_classes=CLASSES, **args).eval()
        model.load_state_dict(_timm_state())
        config = pytorch.timm.data.resolve_data_config(pretrained_cfg=card)
    transform = pytorch.timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        return model(transform(image)[None])[0].numpy()


def write_transformers(folder: pathlib.Path, case: Any) -> str:
    folder.mkdir(exist_ok=True)
    kind = case.kind.partition(".")[2].replace("processor", "vit")
    if not (folder / "model.safetensors").exists():
        name, model, fields = MODELS[kind]
        config = getattr(pytorch.transformers, f"{name}Config")(**fields)
        _filled(getattr(pytorch.transformers, model)(config)).save_pretrained(folder)
        (folder / "whole.json").write_text((folder / "config.json").read_text())
    config, processor = json.loads((folder / "whole.json").read_text()), dict(PROCESSOR)
    processor |= {} if kind in ("vit", "deit", "swin") else {"image_processor_type": "ViTImageProcessor"}
    (processor if case.kind.endswith("processor") else config)[case.field] = case.value
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"huggingface:{folder}"


def transformers_logits(folder: pathlib.Path, image: Image.Image) -> np.ndarray:
    """transformers' own, with PIL's resizing."""
    library = pytorch.transformers
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    with contextlib.redirect_stderr(io.StringIO()):
        model = getattr(library, MODELS[kind][1]).from_pretrained(folder).eval()
    prepared = _processor(folder, kind)(image, return_tensors="np")["pixel_values"]
    return pytorch.logits(model, prepared.transpose(0, 2, 3, 1))[0]


def _processor(folder: pathlib.Path, kind: str) -> Any:
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    fields = json.loads((folder / "preprocessor_config.json").read_text())
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if named not in (None, "ViTImageProcessor", "DeiTImageProcessor"):
        raise ValueError(named)
    own = (
        DeiTImageProcessorPil
        if named == "DeiTImageProcessor" or (not named and kind == "deit")
        else ViTImageProcessorPil
    )
    return own.from_pretrained(folder)


PARTS = {"timm": (write_timm, timm_logits), "huggingface": (write_transformers, transformers_logits)}
"""How a card is written, and the right logits."""
