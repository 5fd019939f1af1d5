"""timm's tensor names, one model family a module: which variant some tensors belong to, and how they become ours.

A module offers `HALLMARK`, a tensor that tells its family; `normalize(values)`, older names to today's;
`architecture(values, name, source, image_size) -> (variant, image size)`; and `rule(path, shape) -> Rule`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import sharding
from lraqvit_jax.weights import tensors
from lraqvit_jax.weights.tensors import Rule

BUFFERS = ("relative_position_index", "attn_mask")
"""Constants that some checkpoints store; left out on purpose."""

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
    raise UserError(f"{source} has no {hallmarks}: it is no ViT, DeiT or Swin classifier in timm's names.")


def check(values: Mapping[str, np.ndarray], needed: Mapping[str, int], source: str) -> None:
    """Raises UserError where a tensor is missing or does not have its number of dimensions."""
    wrong = [name for name, ndim in needed.items() if name not in values or values[name].ndim != ndim]
    if wrong:
        raise UserError(f"{source} has no {', '.join(wrong)} as timm has: it is no classifier that can be read here.")


def convert(layout: Any, values: Mapping[str, np.ndarray], model: str, image_size: int) -> dict[str, Any]:
    """The parameters of a variant from timm's tensors, strictly both ways; see `tensors.convert`."""
    built = models.create(model, num_classes=values["head.weight"].shape[0], image_size=image_size)
    abstract = sharding.abstract_params(built, image_size, sharding.one_device())
    shapes = {path: leaf.shape for path, leaf in trees.flatten(abstract).items()}
    rules = {path: layout.rule(path, shape) for path, shape in shapes.items()}
    return tensors.convert(values, rules, shapes, lambda name: name.rpartition(".")[2] in BUFFERS)
