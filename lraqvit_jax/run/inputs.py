"""inputs.json: the files that a work directory was made from, by their content.

Weights or photographs that were replaced under the same path are noticed by it: what was made from others is refused,
and what they only measure is measured anew.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from lraqvit_jax import weights
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config
from lraqvit_jax.data import sources

NAME = "inputs.json"
MEND = "delete it, and what it says is found out anew"


def read(directory: pathlib.Path) -> dict[str, Any]:
    """{"weights": {file: [size, time of change, sha256]}, "data": {role: digest}}, as they were; {} where none are
    known."""
    path = directory / NAME
    return files.json_object(path, MEND) if path.exists() else {}


def of(config: Config, roles: Iterable[str], before: Mapping[str, Any]) -> dict[str, Any]:
    """The same as it is now, of the files that are here.

    Args:
        config: names weights and data.
        roles: of the data that are looked at.
        before: what was read; a file of the same size and time of change is taken for the same.
    """
    known = before.get("weights")
    known = known if isinstance(known, dict) else {}
    here = bool(config.weights) and weights.local(config.weights)
    paths = [path for path in weights.files(config.weights) if path.exists()] if here else []
    data = {role: config.data.source(role) for role in roles}
    return {
        "weights": {str(path): _file(path, known.get(str(path))) for path in paths},
        "data": {role: sources.digest(name, role, config.data.data_dir) for role, name in data.items()},
    }


def _file(path: pathlib.Path, before: Any) -> list[Any]:
    status = path.stat()
    if isinstance(before, list) and before[:2] == [status.st_size, status.st_mtime_ns]:
        return before
    with path.open("rb") as file:
        return [status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]


def check(now: Mapping[str, Any], before: Mapping[str, Any], config: Config, made: Iterable[str]) -> None:
    """Raises UserError where what is made already was made from other files.

    Args:
        now: `of`.
        before: `read`.
        config: of both.
        made: names of the artefacts that there are.
    """
    made = set(made)
    if "dense" in made:
        old, new = ({path: row[2] for path, row in (of.get("weights") or {}).items()} for of in (before, now))
        if wrong := next((path for path in sorted({*old} & {*new}) if old[path] != new[path]), ""):
            raise UserError(
                f"{wrong} is not the file that this work directory was made from, though it has the same name; name "
                "another work directory, or put the file back."
            )
    for role in ("train", "calibration"):
        used = made if role == "train" and config.teacher.steps else made - {"dense"}
        digests = {(of.get("data") or {}).get(role) for of in (before, now)} - {None}
        if used and len(digests) > 1:
            field = role if getattr(config.data, role) else "train"
            raise UserError(
                f"The images of data.{field} ({config.data.source(role)}) are not those that this work directory was "
                "made from; name another work directory, or put them back."
            )


def write(directory: pathlib.Path, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Keeps what is known; of files that are not here any more, as it was."""
    merged = {part: {**(before.get(part) or {}), **now[part]} for part in now}
    if merged != before:
        files.write_atomically(directory / NAME, json.dumps(merged, indent=1) + os.linesep)
