"""Small files that people and other programs write: JSON, read within bounds."""

import io
import json
import math
import os
import pathlib
import re
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base.errors import UserError, short

MAX_BYTES = 2**26
"""Of a JSON file. Parsed, it takes about twenty times its size."""


MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte-order marks that tell an encoding other than UTF-8."""


ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def locate(name: str | os.PathLike[str]) -> pathlib.Path:
    """The path that a user names, ~ for home.

    Raises:
        UserError: what is none here: nothing, an address such as s3://BUCKET, too long, a NUL, an unknown user.
    """
    try:
        name = os.fsdecode(name)
    except TypeError as error:
        raise UserError(f"{short(repr(name))} is not a path; give a text or a pathlib.Path.") from error
    if not name.strip():
        raise UserError(f"A path is {name!r}, which names nothing; give one, . for the current directory.")
    if ADDRESS.match(name):
        raise UserError(
            f"{short(name)!r} is an address, and files are read and written by local paths alone; copy it here, or "
            "mount it and give the path."
        )
    try:
        path = pathlib.Path(name).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{short(name)!r} is not a path that can be read ({short(str(error))}); correct it.") from error
    return path


def locate_new(name: str | os.PathLike[str]) -> pathlib.Path:
    """As `locate`, absolute, for a directory that is there or can be made.

    Raises:
        UserError: that it cannot, or that other programs could not read its name.
    """
    path = locate(name)
    try:
        path = path.absolute()
    except OSError as error:
        raise UserError("The current directory is not there any more; change to another.") from error
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{short(str(path))!r} is not text in UTF-8; rename it, or name another directory.") from error
    if path.exists() and not path.is_dir():
        raise UserError(f"{short(str(path))} is a file; name a directory.")
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file, and {path.name} cannot be made in it; name another directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} cannot be written; mend its rights, or name another directory.")
    return path


def locate_file(name: str | os.PathLike[str], example: str) -> pathlib.Path:
    """As `locate_new`, for a file that is to be written; `example` is what it could be called."""
    path = locate(name).absolute()
    if path.is_dir():
        raise UserError(f"{path} is a directory; name the file, such as {path / example}.")
    locate_new(path.parent)
    return path


def text(path: pathlib.Path, mend: str) -> str:
    """The content of a file in UTF-8, or in UTF-16 with its mark; marks are no part of it.

    Raises:
        UserError: with `mend` at its end, where it cannot be read or is too large.
    """
    try:
        size = path.stat().st_size
        if size <= MAX_BYTES:
            with path.open("rb") as file:
                mark = file.read(2)
            return path.read_text(encoding=MARKS.get(mark, "utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({short(str(error))}); {mend}.") from error
    raise UserError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}; {mend}.")


def json_object(path: pathlib.Path, mend: str) -> dict[str, Any]:
    """The JSON object in a file; UserError, with `mend` at its end, for anything else."""
    try:
        parsed = json.loads(text(path, mend))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({short(str(error))}); {mend}.") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path} is not a JSON object; {mend}.")
    return parsed


def number(value: Any) -> bool:
    """Whether a parsed value is a finite number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def numbers(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(map(number, value))


def whole(value: Any, low: int, high: int) -> bool:
    """Whether a parsed value is a whole number from `low` to `high`."""
    return type(value) is int and low <= value <= high


KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
    list: "a list",
    dict: "an object",
}
"""The kinds of values, for sentences."""


def check(fields: Mapping[str, Any], kinds: Mapping[str, type], where: str, mend: str) -> None:
    """UserError, with `mend` at its end, where a field is missing or of another type; a float is any finite number."""
    for name, kind in kinds.items():
        value = fields.get(name)
        if not (number(value) if kind is float else isinstance(value, kind) and type(value) is not bool):
            raise UserError(f"{where} has {short(name)} = {short(repr(value))}, which is not {KINDS[kind]}; {mend}.")


UNFINISHED = ".unfinished"
"""How the names of files end while they are written."""


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file in one step, so that a reader or a crash sees the old content or the new.

    Who may read it follows from the umask, as for any new file; of a temporary file of `tempfile` it would not.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces an .npz file in one step; makes its folder."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content.getvalue())
