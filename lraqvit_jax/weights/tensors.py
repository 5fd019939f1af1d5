"""Weight files as dicts of NumPy arrays, and strict conversion between naming schemes. Nothing is ever unpickled."""

import hashlib
import math
import pathlib
import re
import shlex
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors.numpy
from numpy.lib import format as npy

from lraqvit_jax.base import files, trees
from lraqvit_jax.base.errors import UserError, reason, short

INDEX = "model.safetensors.index.json"
PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl"}
SHOWN = 12
UNPACKED, SMALL = 32, 2**26
"""An .npz may unpack to UNPACKED times its size and SMALL bytes; weights hardly compress."""
MAX_SIDE = 2**31
MAX_HEADER = 10_000
"""Characters in the header of an array, NumPy's own bound."""
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` or `.npz` file. Integers, floats and bfloat16 come as they are.

    Headers are checked before anything is allocated. A safetensors file takes its size in memory, and its header, of at
    most 100 MB, about ten times its own; an .npz takes at most UNPACKED times its size, and SMALL.

    Raises:
        UserError: missing, truncated, of another kind, with tensors that are empty or no numbers, or too large.
    """
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run code when it is read; convert it once, where torch is installed: "
            f"python -m lraqvit_jax.weights convert {shlex.quote(str(path))}"
        )
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    readers: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
        ".safetensors": safetensors.numpy.load_file,
        ".npz": _read_npz,
    }
    if path.suffix not in readers:
        raise UserError(f"The weight file {path} is neither .safetensors nor .npz; convert it to one of them.")
    try:
        if not path.is_file():
            raise UserError(f"The weight file {path} does not exist; correct the path.")
        arrays = readers[path.suffix](path)
        return {name: _plain(name, value) for name, value in arrays.items()}
    except UserError:
        raise
    except Exception as error:  # Of hostile bytes the readers raise a dozen kinds.
        raise UserError(
            f"The weight file {path} cannot be read ({reason(error)}); copy or convert it again."
        ) from error


def metadata(path: pathlib.Path) -> dict[str, str]:
    """What the header of a readable safetensors file says beside its tensors; {} of any other file."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, "numpy") as file:
        return dict(file.metadata() or {})


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members, limit = archive.infolist(), SMALL + UNPACKED * path.stat().st_size
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two arrays have one name")
        if sum(member.file_size for member in members) > limit:
            raise ValueError(f"its arrays unpack to more than {limit:,} bytes")
        return {member.filename.removesuffix(".npy"): _read_npy(archive, member) for member in members}


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header must claim just the bytes that the member has."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise ValueError(f"{member.filename} is encrypted, or compressed in a way that NumPy does not write")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{member.filename} is of the .npy version {version}")
        shape, _, dtype = HEADERS[version](file, max_header_size=MAX_HEADER)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        if any(side < 0 for side in shape) or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} claims {short(str(shape))} of {dtype}, which is not its size")
    with archive.open(member) as file:
        return npy.read_array(file, allow_pickle=False, max_header_size=MAX_HEADER)


def _plain(name: str, value: np.ndarray) -> np.ndarray:
    """The array, if it is of numbers; two bytes of no type, as an .npz stores bfloat16, become that."""
    if value.dtype == np.dtype("V2"):
        value = value.view(ml_dtypes.bfloat16)
    if value.dtype.kind not in "biuf" and value.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"{short(name)} is of {short(str(value.dtype))}, which is not a real number")
    if not value.size or max(value.shape, default=0) > MAX_SIDE:
        raise ValueError(f"{short(name)} has the shape {short(str(value.shape))}")
    return value


def shards(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index lists, sorted; UserError where it lists none, or one of another folder."""
    return [index.parent / name for name in sorted({*_weight_map(index).values()})]


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    """{tensor: file} of an index; UserError as `shards`."""
    weight_map: Any = files.json_object(index, "save the weights again").get("weight_map")
    names = weight_map.values() if isinstance(weight_map, Mapping) else ()
    plain = [isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names]
    if not plain or not all(plain):
        raise UserError(f"{index} has no weight_map to .safetensors files beside it; save the weights again.")
    return dict(weight_map)


def _read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of the files that an index lists; each must be where it is said to be."""
    weight_map = _weight_map(index)
    values = {file: read(index.parent / file) for file in sorted({*weight_map.values()})}
    named = [(name, file) for file, tensors in values.items() for name in tensors]
    if dict(named) != weight_map or len(named) != len(dict(named)):
        wrong = sorted({*named} ^ {*weight_map.items()})
        raise UserError(f"{index} and its files differ, first in {short(wrong[0][0])}; save or copy them again.")
    return {name: value for tensors in values.values() for name, value in tensors.items()}


def sha256(path: pathlib.Path) -> str:
    """Of the file; of an index, of the hashes of the files that it lists."""
    if path.name.endswith(".index.json"):
        return hashlib.sha256("".join(sha256(file) for file in shards(path)).encode()).hexdigest()
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
            problems.append(f"{target} is missing" if missing == [target] else f"{target} needs {', '.join(missing)}")
            continue
        try:
            value = rule.make(*(tensors[name] for name in rule.sources))
        except ValueError as error:
            problems.append(f"{target} from {', '.join(rule.sources)}: {error}")
            continue
        if value.shape != tuple(shape):
            there = "the tensor" if rule.sources == (target,) else ", ".join(rule.sources)
            problems.append(f"{target} is {tuple(shape)} and {there} gives {value.shape}")
        try:
            with np.errstate(over="ignore"):
                made[target] = np.ascontiguousarray(value, np.float32)
        except (TypeError, ValueError):
            problems.append(f"{target} has values that are no numbers")
    used = {name for target in shapes if target in rules for name in rules[target].sources}
    problems += [f"{name} is left over" for name in tensors if name not in used and not ignored(name)]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"The weights do not fit the model: {'; '.join(problems[:SHOWN])}{more}. Name the right model.")
    return trees.nest(made)


def check_finite(params: Mapping[str, Any], source: str) -> None:
    """UserError where parameters are NaN or infinite: nothing can be made of such a model."""
    for path, value in trees.flatten(params).items():
        if not np.isfinite(value).all():
            raise UserError(f"{source} has values in {path} that are NaN or infinite; these weights are broken.")
