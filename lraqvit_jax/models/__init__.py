"""Models, found by variant name. A module here offers `VARIANTS` (name -> fields) and `create`, `spec`."""

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.models.linear import LinearOptions
from lraqvit_jax.plan.records import LinearInfo, Plan


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What the algorithms need to know of a model.

    Attributes:
        layers: its linear layers, in the order of the forward pass.
        blocks: number of encoder blocks, the length of the features that `return_features` gives.
        norm_eps: epsilon of every LayerNorm.
        gelu: "exact" (erf) or "tanh".
    """

    layers: tuple[LinearInfo, ...]
    blocks: int
    norm_eps: float
    gelu: str


@functools.cache
def variants() -> dict[str, str]:
    """Returns the module of every known variant."""
    modules = {}
    for module in pkgutil.iter_modules(__path__):
        for name in getattr(importlib.import_module(f"{__name__}.{module.name}"), "VARIANTS", ()):
            modules[name] = module.name
    return modules


def rematerialized(block: type[nn.Module], options: LinearOptions) -> type[nn.Module]:
    """The class of a block as `options.remat` says; its parameters are the same."""
    return nn.remat(block) if options.remat == "block" else block


def name_of(model: nn.Module) -> str:
    """The name of which `create` makes a dense model; of equal variants, the first. UserError where there is none."""
    suffixes = {
        "patch_size": "_patch{}",
        "window_size": "_window{}",
        "gelu": "_{}",
        "norm_eps": "_eps{:.0e}",
        "depth": "_depth{}",
    }
    classifier: Any = model
    options = getattr(model, "options", LinearOptions())
    plan = {path: layer for path, layer in options.plan if layer.form == "dense"}
    for base in variants():
        fields = _module(base).VARIANTS[base]
        changed = {field: getattr(model, field, None) for field in fields}
        changed = {field: value for field, value in changed.items() if value != fields[field]}
        if not set(changed) <= set(suffixes) or None in changed.values():
            continue
        name = base + "".join(suffixes[field].format(value) for field, value in changed.items())
        sizes = {"num_classes": classifier.num_classes, "image_size": classifier.image_size}
        if create(name, **sizes, plan=plan, dtype=options.dtype) == model:
            return name
    raise UserError(
        f"{type(model).__name__} is no dense model of lraqvit_jax.models; make it with weights.load or models.create."
    )


def _module(name: str) -> Any:
    base, _ = split(name)
    if base not in variants():
        raise UserError(f"There is no model {name!r}; {nearest(base, variants())}")
    return importlib.import_module(f"{__name__}.{variants()[base]}")


def split(name: str) -> tuple[str, dict[str, Any]]:
    """Splits a name into the variant and the fields that its suffixes change.

    "vit_tiny_patch8" is "vit_tiny" with {"patch_size": 8}; "_window12" sets the window of a Swin, "_tanh" the GELU,
    "_eps1e-12" the epsilon of a ViT's LayerNorms, "_depth6" its number of blocks.
    """
    base, changes = name, dict[str, Any]()
    while match := re.fullmatch(r"(.+)_(?:(patch|window)(\d+)|(tanh)|eps(\d+e-\d+)|depth(\d+))", base):
        base, field, value, gelu, eps, depth = match.groups()
        whole = {f"{field}_size": int(value)} if field else {"depth": int(depth)} if depth else {}
        changes |= {"gelu": gelu} if gelu else {"norm_eps": float(eps)} if eps else whole
    return base, changes


def create(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    plan: Plan | None = None,
    dtype: str = "float32",
    arithmetic: str = "integer",
) -> nn.Module:
    """Builds a model.

    Args:
        name: variant, such as "vit_nano", or with suffixes, "vit_tiny_patch8", "swin_base_window12"; see `split`.
        num_classes: size of the logits.
        image_size: side of the square input in pixels.
        plan: form of each linear layer; None is all dense.
        dtype: "float32" or "bfloat16", of the float products.
        arithmetic: "integer" or "fake", of the quantized layers.

    Raises:
        UserError: the variant is unknown, or the image size does not fit its patches.
    """
    options = LinearOptions(plan=tuple(sorted((plan or {}).items())), dtype=dtype, arithmetic=arithmetic)
    return _module(name).create(name, num_classes=num_classes, image_size=image_size, options=options)


def spec(name: str, *, num_classes: int, image_size: int) -> ModelSpec:
    """Returns the SPEC of a variant at this size; errors as `create`."""
    return _module(name).spec(name, num_classes=num_classes, image_size=image_size)


def architecture(name: str, image_size: int) -> tuple[str, dict[str, Any]]:
    """The module that has a model, and the fields of its variant with `image_size`; errors as `create`."""
    module = _module(name)
    values = {**fields(module.VARIANTS, name, image_size), "image_size": image_size}
    return module.__name__.rpartition(".")[2], values


def fields(table: Mapping[str, Mapping[str, Any]], name: str, image_size: int) -> dict[str, Any]:
    """Returns a variant's fields; UserError where its patches do not tile the image."""
    base, changes = split(name)
    unknown = sorted(set(changes) - set(table[base]))
    if unknown:
        raise UserError(f"Model {name!r} sets {unknown[0]}, which {base!r} does not have; leave it out.")
    values = {**table[base], **changes}
    if not values["patch_size"] or image_size <= 0 or image_size % values["patch_size"]:
        raise UserError(
            f"Model {name!r} has patches of {values['patch_size']} pixels, which do not tile an image of {image_size}; "
            "set preprocess.size to a multiple of the patch."
        )
    return values
