"""timm's and transformers' models with the recipe's weights, saved as a user has them."""

import importlib
import json
import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from tests.golden import recipe

CLASSES = 50
SIZES = {
    "vit": {"tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}, "base": {}},
    "swin": {"tiny": {}, "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}},
}
"""What differs from the defaults of transformers' configs."""
STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
CONFIG = ("model_type", "image_size", "hidden_act", "layer_norm_eps", "qkv_bias")
"""Fields of transformers' configs that the logits depend on and the tensors do not show."""


def _stand_in() -> Any:
    """Declares torchvision's operators where it was built for another torch and does not load.

    timm and transformers import it, and the models here use none of them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor x) -> Tensor")
        return library
    return None


_LIBRARY = _stand_in()  # kept: it goes with its object
timm, transformers = (importlib.import_module(name) for name in ("timm", "transformers"))


class Case(NamedTuple):
    """A model to compare.

    Attributes:
        name: timm's, such as "vit_tiny_patch16_224", or transformers' type and size, such as "swin base".
        size: side of the images.
        options: of timm's `create_model`, or fields of transformers' config.
        stream: see `recipe.weights`.
    """

    name: str
    size: int
    options: Mapping[str, Any] = types.MappingProxyType({})
    stream: float = 1.0

    def __str__(self) -> str:
        return " ".join([self.name, str(self.size), *(f"{key}={value}" for key, value in self.options.items())])

    @property
    def transformers(self) -> bool:
        return " " in self.name


def build(case: Case, classes: int = CLASSES, seed: int = 1) -> torch.nn.Module:
    """The model with the recipe's weights, in evaluation mode."""
    model = _transformers(case, classes) if case.transformers else _timm(case, classes)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    values = recipe.weights(shapes, seed, case.stream)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    return model.eval()


def _timm(case: Case, classes: int) -> torch.nn.Module:
    return timm.create_model(case.name, num_classes=classes, img_size=case.size, **case.options)


def _transformers(case: Case, classes: int) -> torch.nn.Module:
    kind, size = case.name.split()
    config, model = {
        "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
        "deit": (transformers.DeiTConfig, transformers.DeiTForImageClassificationWithTeacher),
        "swin": (transformers.SwinConfig, transformers.SwinForImageClassification),
    }[kind]
    fields = SIZES["swin" if kind == "swin" else "vit"][size]
    return model(config(image_size=case.size, num_labels=classes, **fields, **case.options))


def file_name(case: Case) -> str:
    """What a user would call the weights."""
    return "model.safetensors" if case.transformers else re.sub(r"\d+$", str(case.size), case.name) + ".safetensors"


def save(model: torch.nn.Module, case: Case, directory: pathlib.Path) -> str:
    """Saves the model and returns its source string."""
    if case.transformers:
        model.save_pretrained(directory)
        return f"huggingface:{directory}"
    path = directory / file_name(case)
    card = {"architecture": case.name, "pretrained_cfg": {"input_size": [3, case.size, case.size], **STATISTICS}}
    (directory / "config.json").write_text(json.dumps(card))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return f"timm:{path}"


def logits(model: torch.nn.Module, images: np.ndarray, **options: Any) -> np.ndarray:
    """Logits of images (batch, size, size, 3), or the features of a model that has no classes; options of its call."""
    run = getattr(model, "get_image_features", model)
    with torch.no_grad():
        found = run(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), **options)
    if isinstance(found, torch.Tensor):
        return found.numpy()
    names = ("logits", "image_embeds", "pooler_output")
    return next(found[name] for name in names if found.get(name) is not None).numpy()
