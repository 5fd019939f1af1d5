"""Weight files as dicts of NumPy arrays, and strict conversion between naming schemes. Nothing is ever unpickled."""

import hashlib
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from lraqvit_jax.errors import UserError

PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl"}
SHOWN = 12


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` or `.npz` file.

    Raises:
        UserError: missing, truncated, of another kind, or with arrays of Python objects.
    """
    if path.suffix in PICKLES:
        raise UserError(f"{path} is a pickle, which can run code when it is read; convert it once: {_conversion(path)}")
    if not path.is_file():
        raise UserError(f"The weight file {path} does not exist; correct the path.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise UserError(f"The weight file {path} cannot be read ({error}); copy or convert it again.") from error
    raise UserError(f"The weight file {path} is neither .safetensors nor .npz; convert it to one of them.")


def _conversion(path: pathlib.Path) -> str:
    target = path.with_suffix(".safetensors")
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"d = torch.load('{path}', map_location='cpu', weights_only=True); "
        f"save_file({{k: v.contiguous() for k, v in d.get('model', d).items()}}, '{target}')\""
    )


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Rule(NamedTuple):
    """How one target is made: from which source tensors, and by what."""

    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]


def convert(
    tensors: Mapping[str, np.ndarray],
    rules: Mapping[str, Rule],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """Makes a nested parameter dict from named tensors, strictly both ways.

    Args:
        tensors: by source name.
        rules: by target path, "a/b/c".
        shapes: by target path; every one must be filled, with just that shape.
        ignored: source names that may be left over.

    Returns:
        The nested dict, float32.

    Raises:
        UserError: lists every tensor that is missing, left over, or of another shape.
    """
    problems, made = [], {}
    for target, shape in shapes.items():
        rule = rules.get(target)
        missing = [name for name in rule.sources if name not in tensors] if rule else ["a rule"]
        if rule is None or missing:
            problems.append(f"{target} needs {', '.join(missing)}")
            continue
        try:
            value = rule.make(*(tensors[name] for name in rule.sources))
        except ValueError as error:
            problems.append(f"{target} from {', '.join(rule.sources)}: {error}")
            continue
        if value.shape != tuple(shape):
            problems.append(f"{target} is {tuple(shape)} and {', '.join(rule.sources)} gives {value.shape}")
        made[target] = np.ascontiguousarray(value, np.float32)
    used = {name for target in shapes if target in rules for name in rules[target].sources}
    problems += [f"{name} is left over" for name in tensors if name not in used and not ignored(name)]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"The weights do not fit the model: {'; '.join(problems[:SHOWN])}{more}. Name the right model.")
    return nest(made)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def flatten(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{where}{name}/") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return flat
