"""metrics.jsonl: one JSON object a line, for people and for plots."""

import json
import os
import pathlib
import tempfile
from typing import Any

from lraqvit_jax import processes

UNFINISHED = ".unfinished"
"""How the names of files end while they are written."""


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file in one step, so that a reader or a crash sees the old content or the new."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows, each with `run` and `step`; other lines, such as one cut off by a crash, are left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("run"), str) and type(row.get("step")) is int:
            rows.append(row)
    return rows


class MetricsLog:
    """Appends the metrics of one run, on the first process.

    Lines after `step`, from before an interruption, are dropped first.
    """

    def __init__(self, path: pathlib.Path, run: str, step: int) -> None:
        self._path, self._run, self._writes = path, run, processes.first()
        if not self._writes:
            return
        kept = [row for row in read(path) if row["run"] != run or row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"run": self._run, "step": step, **values}) + "\n")
