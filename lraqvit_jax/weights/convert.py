"""Pickled checkpoints of PyTorch to safetensors: `python -m lraqvit_jax.weights convert FILE.pth`.

Nothing of a pickle runs: what is no tensor becomes an inert object, whatever class the file names, so training states
with an argparse.Namespace, a configuration or a logger inside are read like any other.
"""

import argparse
import collections
import pathlib
import pickle
import types
from collections.abc import Mapping, Sequence
from typing import Any

from lraqvit_jax.base import arguments, files
from lraqvit_jax.base.errors import UserError, reason, short

STATES = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "net", "params", "teacher")
"""Where a training state has its weights, the averages of timm and DeiT first, as timm takes them."""
REBUILD = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"}
DEEP = 4


class Inert:
    """Stands for any object of any class; keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **fields: Any) -> "Inert":
        del args, fields
        return object.__new__(cls)

    def __init__(self, *args: Any, **fields: Any) -> None:
        del args, fields

    def __setstate__(self, state: Any) -> None:
        del state

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value

    def __call__(self, *args: Any, **fields: Any) -> "Inert":
        del args, fields
        return self

    def append(self, item: Any) -> None:
        del item

    def extend(self, items: Any) -> None:
        del items

    def add(self, item: Any) -> None:
        del item


class Unpickler(pickle.Unpickler):
    """Makes tensors and plain containers."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in REBUILD:
            return getattr(torch._utils, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | type(torch.Size)):
            kind = getattr(torch, name)
            plain = isinstance(kind, torch.dtype) or name in ("Size", "device") or name.endswith("Storage")
            return kind if plain else Inert
        return Inert


def state_dict(path: pathlib.Path) -> dict[str, Any]:
    """The tensors of a checkpoint by name; of a training state, the averaged weights where there are any.

    Raises:
        UserError: no torch here, no such file, none that torch wrote, or no tensors in it.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("Converting a pickle needs torch; pip install torch, or convert it where torch is.") from error
    if not path.is_file():
        raise UserError(f"The checkpoint {path} does not exist; correct the path.")
    module = types.ModuleType("inert_pickle")
    vars(module).update(Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load())
    try:
        loaded = torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except Exception as error:  # Of hostile bytes it raises a dozen kinds.
        raise UserError(
            f"{path} cannot be read as a checkpoint of PyTorch ({reason(error)}); save it again."
        ) from error
    found = _tensors(loaded, torch.Tensor, DEEP)
    if not found:
        keys = ", ".join(short(str(key), 30) for key in loaded) if isinstance(loaded, dict) else type(loaded).__name__
        raise UserError(
            f"{path} holds no state dict of tensors ({short(keys)}); save model.state_dict() with torch.save."
        )
    return found


def _tensors(tree: Any, kind: type, deep: int) -> dict[str, Any]:
    if not isinstance(tree, Mapping) or not deep:
        return {}
    inner = next((tree[name] for name in STATES if isinstance(tree.get(name), Mapping) and tree[name]), None)
    if inner is not None and (found := _tensors(inner, kind, deep - 1)):
        return found
    return {str(name): value for name, value in tree.items() if isinstance(value, kind)}


def convert(path: pathlib.Path, target: pathlib.Path) -> int:
    """Writes the tensors as safetensors; returns how many. Errors as `state_dict`, and where `target` is there."""
    if target.exists():
        raise UserError(f"{target} exists already; name another file for the converted weights.")
    named = {name: value.detach().to_dense().clone().contiguous() for name, value in state_dict(path).items()}
    from safetensors.torch import save_file

    save_file(named, target)
    return len(named)


def command(argv: Sequence[str]) -> None:
    options = parse(argv)
    path = files.locate(options.file)
    target = files.locate(options.target) if options.target else path.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise UserError(f"The converted weights go to {target}; give a name that ends in .safetensors.")
    print(f"{convert(path, target)} tensors in {target}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments.Parser("python -m lraqvit_jax.weights convert", __doc__)
    parser.add_argument("file", help="a .pth, .pt, .bin or .ckpt that torch.save wrote")
    parser.add_argument("target", nargs="?", default="", help="the .safetensors file; beside it where none is named")
    return parser.parse_args(argv)
