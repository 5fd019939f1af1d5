"""Models, found by variant name. A module here offers `VARIANTS` (name -> fields) and `create`, `spec`."""

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
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
        gelu: "exact" (erf), "tanh", "quick" (x times the sigmoid of 1.702 x) or "swiglu"; see `models.vit.gelu`.
    """

    layers: tuple[LinearInfo, ...]
    blocks: int
    norm_eps: float
    gelu: str


SUFFIXES = {
    "patch_size": "_patch{}",
    "window_size": "_window{}",
    "dim": "_dim{}",
    "depth": "_depth{}",
    "depths": "_depths{}",
    "heads": "_heads{}",
    "mlp_dim": "_mlp{}",
    "pool": "_{}",
    "gelu": "_{}",
    "norm_eps": "_eps{:.0e}",
    "class_token": "_class{:d}",
    "registers": "_reg{}",
    "pre_norm": "_prenorm{:d}",
    "qk_norm": "_qknorm{:d}",
    "projection": "_proj{}",
    "spare": "_spare{}",
}
"""What a field of a variant adds to its name where it is another."""
POOLS = ("token", "first", "avg", "normavg", "concat", "map")
"""What a ViT classifies: see `models.vit.ViT`."""
POOLS_OF_ALL = ("avg", "normavg", "map")
"""Those that need no class token."""
GELUS = ("exact", "tanh", "quick", "swiglu")
_VALUES = {
    **{"norm_eps": r"\d+e-\d+", "pool": "|".join(POOLS), "gelu": "|".join(GELUS)},
    **dict.fromkeys(("class_token", "pre_norm", "qk_norm"), "[01]"),
}
SUFFIX = re.compile(
    "(?P<base>.+)(?:"
    + "|".join(
        re.sub(r"\{.*\}", lambda _, field=field: f"(?P<{field}>{_VALUES.get(field, r'[0-9]+(?:x[0-9]*)*')})", text)  # type: ignore[misc]
        for field, text in SUFFIXES.items()
    )
    + ")"
)
READ: dict[str, Callable[[str], Any]] = {
    **{"norm_eps": float, "pool": str, "gelu": str},
    **dict.fromkeys(("class_token", "pre_norm", "qk_norm"), lambda text: text == "1"),
}
"""How a suffix is read, where it is no count."""


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
    """The shortest name of which `create` makes a dense model; of equals, the first. UserError where there is none."""
    classifier: Any = model
    options = getattr(model, "options", LinearOptions())
    plan = {path: layer for path, layer in options.plan if layer.form == "dense"}
    by_variant = {base: changed for base in variants() if (changed := _changed(model, base)) is not None}
    for base in sorted(by_variant, key=lambda base: len(by_variant[base])):
        name = renamed(base, by_variant[base])
        sizes = {"num_classes": classifier.num_classes, "image_size": classifier.image_size}
        if create(name, **sizes, plan=plan, dtype=options.dtype) == model:
            return name
    raise UserError(f"{type(model).__name__} is not a dense model of ours; make it with weights.load or models.create.")


def _changed(model: nn.Module, base: str) -> dict[str, Any] | None:
    """The fields that a model has otherwise than a variant; None where no suffix of a name says so."""
    fields = _module(base).VARIANTS[base]
    changed = {field: getattr(model, field, None) for field in fields if getattr(model, field, None) != fields[field]}
    return changed if set(changed) <= set(SUFFIXES) and None not in changed.values() else None


def renamed(base: str, changes: Mapping[str, Any]) -> str:
    """The name of a variant with these fields changed; `split` reads it."""
    return base + "".join(SUFFIXES[field].format(_text(value)) for field, value in changes.items())


def _text(value: Any) -> Any:
    """A list of numbers as 2x2x6x2, of one number as 2x."""
    return "x".join(map(str, value)) + "x" * (len(value) == 1) if isinstance(value, tuple) else value


def _module(name: str) -> Any:
    base, _ = split(name)
    if base not in variants():
        raise UserError(f"There is no model {name!r}; {nearest(base, variants())}")
    return importlib.import_module(f"{__name__}.{variants()[base]}")


def split(name: str) -> tuple[str, dict[str, Any]]:
    """Splits a name into the variant and the fields that its suffixes change; `SUFFIXES` has them all.

    "vit_tiny_patch8" is "vit_tiny" with {"patch_size": 8}, "vit_tiny_dim48_heads2" a narrower one, and
    "swin_tiny_depths2x2x2_heads3x6x12" has three stages.
    """
    base, changes = name, dict[str, Any]()
    while match := SUFFIX.fullmatch(base):
        base = match["base"]
        field, text = next((key, value) for key, value in match.groupdict().items() if key != "base" and value)
        changes[field] = READ.get(field, _count)(text)
    return base, changes


def _count(text: str) -> int | tuple[int, ...]:
    return tuple(int(part) for part in text.split("x") if part) if "x" in text else int(text)


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
        arithmetic: "integer", "fake" or "unrounded", of the quantized layers.

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
    wrong = [field for field in changes if isinstance(values[field], tuple) != isinstance(table[base][field], tuple)]
    if wrong or not _consistent(values):
        raise UserError(f"Model {name!r} sets {', '.join(wrong or changes)} to what no {base!r} can have; correct it.")
    if not values["patch_size"] or image_size <= 0 or image_size % values["patch_size"] != values.get("spare", 0):
        raise UserError(
            f"Model {name!r} has patches of {values['patch_size']} pixels, which do not tile an image of {image_size}; "
            "set preprocess.size to a multiple of the patch."
        )
    return values


def _consistent(values: Mapping[str, Any]) -> bool:
    """Whether heads share the features of every stage, no count is 0, what is pooled is there, and a Swin has GELU."""
    if values.get("class_token") is False and (values["pool"] not in POOLS_OF_ALL or values.get("distilled")):
        return False
    if "depths" in values and values["gelu"] == "swiglu":
        return False
    heads = values["heads"] if isinstance(values["heads"], tuple) else (values["heads"],)
    depths = values.get("depths", (values.get("depth"),))
    counts = [*heads, *depths, values["dim"]]
    if not all(counts) or ("depths" in values and len(depths) != len(heads)):
        return False
    return all(values["dim"] * 2**stage % count == 0 for stage, count in enumerate(heads))
