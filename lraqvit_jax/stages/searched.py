"""What a search keeps on disk, WORKDIR/search: plans.json and search.json. One that was stopped goes on from there."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import processes
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import files as plan_files
from lraqvit_jax.plan.blocks import Scales
from lraqvit_jax.plan.records import Integers, LayerPlan
from lraqvit_jax.run.workspace import Workspace

FOLDER, MEND = "search", "delete the folder to search anew"
SCHEMA = 2
"""Of both files: plans of another are by other rules."""
Layers = dict[str, LayerPlan]


class Planner(Protocol):
    """Gives the plan of any budget; see `stages.plan.Planner`.

    Attributes:
        scales: what was measured so far.
        widths: what rounding each layer loses, by the integers of its kernel.
    """

    @property
    def scales(self) -> Scales: ...

    @property
    def widths(self) -> Mapping[str, Mapping[Integers, float]]: ...

    def plan(self, ws: Workspace, options: PlanOptions) -> Layers: ...


class Record:
    """WORKDIR/search/search.json: what the images said of every candidate, on disk after each."""

    def __init__(self, directory: pathlib.Path, head: Mapping[str, Any]) -> None:
        self._path, self._head = directory / FOLDER / "search.json", dict(head)
        before = _read(self._path)
        same = all(before.get(name) == value for name, value in self._head.items())
        self.points: list[dict[str, Any]] = before.get("points", []) if same else []

    def known(self, name: str) -> dict[str, Any] | None:
        return next((point for point in self.points if point["name"] == name), None)

    def add(self, point: dict[str, Any]) -> None:
        self.points.append(point)
        self.write()

    def write(self, **more: Any) -> None:
        text = json.dumps({"schema": SCHEMA, **self._head, "points": self.points, **more}, indent=1)
        processes.once(functools.partial(files.write_atomically, self._path, text + "\n"))


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What a file of a search holds; {} where there is none.

    Raises:
        UserError: it is broken, or another version wrote it.
    """
    content = files.json_object(path, MEND) if path.exists() else {}
    if content.get("schema", SCHEMA) != SCHEMA:
        raise UserError(
            f"{path} is of a version of lraqvit_jax that searched by other rules, and models of the two would be "
            "compared; start a new work directory, or go on with that version."
        )
    return content


def widths(directory: pathlib.Path) -> dict[str, dict[Integers, float]]:
    """What rounding loses, as `Plans` wrote it; {} where it did not yet."""
    known = _read(directory / FOLDER / "plans.json").get("widths", {})
    return {layer: {Integers.read(name): loss for name, loss in losses.items()} for layer, losses in known.items()}


class Plans:
    """The plans of "both" by budget, and what was measured to choose them; on disk after each, as a plan depends on
    what was measured before it."""

    def __init__(self, ws: Workspace, planner: Planner) -> None:
        self._ws, self._planner, self._path = ws, planner, ws.directory / FOLDER / "plans.json"
        before = _read(self._path)
        self._plans: dict[str, Any] = before.get("plans", {})
        for path, part, prior, points in before.get("scales", []):
            scale = planner.scales[path, part]
            scale.prior, scale.points = prior, dict(map(tuple, points))

    def plan(self, unit: str, budget: float) -> Layers:
        """The float plan of a budget in a unit."""
        name = f"{unit}:{budget:g}"
        if name not in self._plans:
            options = dataclasses.replace(self._ws.config.plan, budget=budget, unit=unit)
            planned = self._planner.plan(self._ws, options)
            self._plans[name] = plan_files.to_json(planned)
            scales = [
                [path, part, scale.prior, sorted(scale.points.items())]
                for (path, part), scale in self._planner.scales.items()
            ]
            widths = {
                layer: {str(integers): loss for integers, loss in losses.items()}
                for layer, losses in self._planner.widths.items()
            }
            content = {"schema": SCHEMA, "plans": self._plans, "scales": scales, "widths": widths}
            text = json.dumps(content)
            processes.once(functools.partial(files.write_atomically, self._path, text))
        return plan_files.from_json(self._plans[name])
