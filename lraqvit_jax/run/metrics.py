"""metrics.jsonl: one JSON object a line, for people and for plots; and the same for TensorBoard, if it is wanted."""

import json
import pathlib
from typing import Any

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, reason
from lraqvit_jax.devices import processes


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


def tensorboard() -> Any:
    """The package that writes event files; UserError where it is not installed."""
    try:
        import tensorboardX
    except ImportError as error:
        raise UserError(
            f"tensorboard is set, which needs a package that cannot be imported ({reason(error)}); "
            "pip install tensorboardX, or leave the field out."
        ) from error
    return tensorboardX


class MetricsLog:
    """Appends the metrics of one run, on the first process.

    Lines after `step`, from before an interruption, are dropped first; TensorBoard, whose files only grow, is told to
    pass over such events.
    """

    def __init__(self, path: pathlib.Path, run: str, step: int, events: bool = False) -> None:
        """With `events`, writes also `tensorboard/RUN/` beside the file."""
        self._path, self._run, self._writes, self._events = path, run, processes.is_primary_process(), None
        if not self._writes:
            return
        if events:
            folder = path.parent / "tensorboard" / run
            self._events = tensorboard().SummaryWriter(str(folder), purge_step=step + 1, filename_suffix=f".{step:09}")
        kept = [row for row in read(path) if row["run"] != run or row["step"] <= step]
        files.write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._writes:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"run": self._run, "step": step, **values}) + "\n")
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def close(self) -> None:
        if self._events:
            self._events.close()
