"""timm's tensor names, one model family a module: which variant some tensors belong to, and how they become ours.

A module offers `HALLMARK`, a tensor that tells its family; `normalize(values)`, older names to today's;
`architecture(values, hints, source) -> (variant, image size)`; `fitted(values, model)`, for what depends on the model;
and `rule(path, shape) -> Rule`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.devices import sharding
from lraqvit_jax.models.vit import MLP_RATIO
from lraqvit_jax.weights import tensors
from lraqvit_jax.weights.tensors import Rule

BUFFERS = ("relative_position_index", "attn_mask")
"""Constants that some checkpoints store; left out on purpose."""


class Hints(NamedTuple):
    """What no tensor tells.

    Attributes:
        name: of the architecture; of equal variants, the one of the family that it begins with.
        image_size: side in pixels; 0 is unknown.
        heads: of a ViT's attention; 0 is unknown.
        usual_heads: of the architecture, where its width is the usual one for them; 0 is unknown.
        gelu: of `models.GELUS`.
        norm_eps: of a ViT's LayerNorms; 0 is unknown.
        pool: "token", "avg", "map" or "concat"; "" is unknown.
        qkv_bias: False where query, key and value may have none.
        embed_class: whether the tokens before the patches' have positions of their own; None is unknown.
        headless: whether a model without a head is meant, whose output are the features.
        mend: how a user says what is missing.
    """

    name: str
    image_size: int = 0
    heads: int = 0
    usual_heads: int = 0
    gelu: str = "exact"
    norm_eps: float = 0.0
    pool: str = ""
    qkv_bias: bool = True
    embed_class: bool | None = None
    headless: bool = False
    mend: str = "write it into a config.json beside the file"


PATCH_EMBED = {
    # (dim, 3, p, p) -> rows in the order of our patches: row, column, channel.
    "patch_embed/kernel": Rule(("patch_embed.proj.weight",), lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0])),
    "patch_embed/bias": Rule(("patch_embed.proj.bias",), np.asarray),
}
"""The patch embedding, a convolution in timm."""


def find(values: Mapping[str, np.ndarray], source: str) -> Any:
    """The module whose family these tensors are; UserError if none."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    for module in modules:
        if module.HALLMARK in values:
            return module
    hallmarks = " nor ".join(module.HALLMARK for module in modules)
    named = ", ".join(short(name, 60) for name in list(values)[:3])
    raise UserError(
        f"{source} has no {hallmarks}: it is not a ViT, DeiT or Swin classifier in timm's names, but has {named}. "
        "A directory of transformers' save_pretrained is huggingface:DIR, a file of big_vision big_vision:FILE.npz."
    )


def check(values: Mapping[str, np.ndarray], needed: Mapping[str, int], source: str) -> None:
    """Raises UserError where a tensor is missing or does not have its number of dimensions."""
    wrong = [name for name, ndim in needed.items() if name not in values or values[name].ndim != ndim]
    if wrong:
        raise UserError(
            f"{source} has no {', '.join(wrong)} as timm has: it is not a classifier that can be read here."
        )


def head(values: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What `check` needs of a head, where there is one."""
    return {"head.weight": 2} if any(name.startswith("head") for name in values) else {}


def mlp_dim(fc1: np.ndarray, gates: int = 1) -> int:
    """The models' field of that name, from the weight (gates * units, dim) of a first block's fc1."""
    units, dim = fc1.shape[0] // gates, fc1.shape[1]
    return 0 if units == MLP_RATIO * dim else units


def with_bias(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Zeros where no query, key and value has a bias."""
    if any(name.endswith("attn.qkv.bias") for name in values):
        return dict(values)
    kernels = {name: value for name, value in values.items() if name.endswith("attn.qkv.weight")}
    return dict(values) | {
        f"{name.removesuffix('weight')}bias": np.zeros(value.shape[0], np.float32) for name, value in kernels.items()
    }


def with_head(values: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
    """With a head of one zero where there is none at all, and whether there was one."""
    if any(name.startswith("head") for name in values) or "norm.weight" not in values:
        return dict(values), True
    dim = values["norm.weight"].shape[0]
    zeros = {"head.weight": np.zeros((1, dim), np.float32), "head.bias": np.zeros(1, np.float32)}
    return dict(values) | zeros, False


def convert(layout: Any, values: Mapping[str, np.ndarray], model: str, image_size: int) -> dict[str, Any]:
    """The parameters of a variant from timm's tensors, strictly both ways; see `tensors.convert`."""
    classes = values["head.weight"].shape[0] if "head.weight" in values else 0
    built = models.create(model, num_classes=classes, image_size=image_size)
    values = layout.fitted(values, built)
    abstract = sharding.abstract_params(built, image_size, sharding.one_device())
    shapes = {path: leaf.shape for path, leaf in trees.flatten(abstract).items()}
    rules = {path: layout.rule(path, shape) for path, shape in shapes.items()}
    return tensors.convert(values, rules, shapes, lambda name: name.rpartition(".")[2] in BUFFERS)
