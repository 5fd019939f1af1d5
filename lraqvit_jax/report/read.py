"""What a work directory holds, as plain data: all that the report needs, and no model, image or weight."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config, restored
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.files import read_plan
from lraqvit_jax.plan.records import LinearInfo, Plan
from lraqvit_jax.run import metrics, results
from lraqvit_jax.weights import artifacts, tensors

MEND = "delete it, or put it back"
LATENCY = "latency-runtimes.json"
"""What `bench latency` writes."""
EXAMPLE = {"index": int, "label": int, "src": str, "dense": dict, "other": dict}
LOW_RANK = "lowrank.json"
"""What `bench lowrank` writes."""
LOW_RANK_ROW = {"name": str, "method": str, "budget": float, "params": int, "top1": float}
LATENCY_ROW = {"runtime": str, "model": str, "threads": int, "batch": int, "wall": dict}
SEARCH = "search/search.json"
"""What a search of `goal` writes."""
POINT = {"name": str, "family": str, "steps": int} | dict.fromkeys(
    ("size_mb", "macs", "drop", "drop_low", "drop_high", "expected", "images"), float
)
ANSWERS = ("image", "label", "answer", "probability")


class Run(NamedTuple):
    """One work directory.

    Attributes:
        name: of the directory.
        model: variant.
        rows: of results.json.
        config: as the run had it; {} where there is no config.json.
        plan: of the deployed model, by layer.
        layers: of the dense model; () where no artefact says what model it is.
        metas: what each artefact says of itself, by name.
        training: rows of metrics.jsonl.
        spectra: singular values of the dense kernels that are factorized, by layer.
        surfaces: largest absolute activations, "layer:product:before" and "...:after", by int8 model.
        answers: what each model said of each image, arrays by the names of ANSWERS.
        examples: images that two models answer differently; see `report.examples`.
        latency: of `bench latency`; {} where nothing is measured.
        lowrank: of `bench lowrank`, likewise.
        exports: what export/NAME.json says of the files of each artefact, by name.
        search: search/search.json of a run with a goal; {} where there is none.
    """

    name: str
    model: str
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    plan: Plan
    layers: Sequence[LinearInfo]
    metas: Mapping[str, Mapping[str, Any]]
    training: Sequence[Mapping[str, Any]]
    spectra: Mapping[str, np.ndarray]
    surfaces: Mapping[str, Mapping[str, np.ndarray]]
    answers: Mapping[str, Mapping[str, np.ndarray]]
    examples: Mapping[str, Any]
    latency: Mapping[str, Any]
    lowrank: Mapping[str, Any]
    exports: Mapping[str, Mapping[str, Any]]
    search: Mapping[str, Any]

    def row(self, name: str) -> Mapping[str, Any] | None:
        return next((row for row in self.rows if row["name"] == name), None)

    @property
    def options(self) -> Config:
        """The configuration as records; what it does not say has its default."""
        return restored(self.config, self.name)

    @property
    def class_names(self) -> Sequence[str]:
        """Of the artefacts; [] where none are known."""
        of_models = (meta["class_names"] for meta in self.metas.values())
        return next(filter(None, of_models), [])


def run(directory: pathlib.Path) -> Run:
    """Reads a work directory.

    Raises:
        UserError: it does not exist, has no results, or a file in it is not what its name says.
    """
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}; name a work directory, as --workdir did.")
    table = results.read(directory)
    if not table["rows"]:
        raise UserError(f"{directory} has no results.json to report yet; run --stages=teacher first.")
    metas = _metas(directory)
    plan = read_plan(directory / "plan.json") if (directory / "plan.json").exists() else {}
    folder = directory / "report"
    return Run(
        directory.resolve().name,
        str(table.get("model", "")),
        table["rows"],
        _config(directory),
        plan,
        _layers(metas, plan),
        metas,
        metrics.read(directory / "metrics.jsonl"),
        tensors.read(folder / "spectra.npz") if (folder / "spectra.npz").exists() else {},
        _arrays(folder, "activations"),
        {name: arrays for name, arrays in _arrays(folder, "answers").items() if _whole(arrays)},
        _listing(folder / "examples.json", "images", EXAMPLE),
        _listing(directory / LATENCY, "rows", LATENCY_ROW),
        _listing(directory / LOW_RANK, "rows", LOW_RANK_ROW),
        {name: card for name in metas if (card := results.card(directory, name))},
        _listing(directory / SEARCH, "points", POINT),
    )


def named(runs: Sequence[Run], paths: Sequence[pathlib.Path]) -> list[Run]:
    """The runs under names of their own: as much of the end of each path as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return [run._replace(name="/".join(part[-length:])) for run, part in zip(runs, parts, strict=True)]


def _metas(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    folder = directory / "checkpoints"
    return {name: artifacts.read_meta(folder / name) for name in artifacts.names(folder)}


def _layers(metas: Mapping[str, Mapping[str, Any]], plan: Plan) -> tuple[LinearInfo, ...]:
    meta = metas.get("dense") or next(iter(metas.values()), None)
    if meta is None or not plan:
        return ()
    size = meta["preprocess"]["size"]
    layers = models.spec(meta["model"], num_classes=meta["num_classes"], image_size=size).layers
    check(plan, layers)
    return tuple(layers)


def _json(path: pathlib.Path) -> dict[str, Any]:
    return files.json_object(path, MEND) if path.exists() else {}


def _config(directory: pathlib.Path) -> dict[str, Any]:
    """The configuration; {} where there is none."""
    path = directory / "config.json"
    config = _json(path).get("config", {})
    files.check({"config": config}, {"config": dict}, str(path), MEND)
    restored(config, str(path))
    return config


def _listing(path: pathlib.Path, name: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with a list of objects under a name; {} where there is no file."""
    content = _json(path)
    if content:
        files.check(content, {name: list}, str(path), MEND)
    for row in content.get(name, ()):
        files.check({"row": row}, {"row": dict}, str(path), MEND)
        files.check(row, kinds, str(path), MEND)
    return content


def _arrays(folder: pathlib.Path, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of every KIND-NAME.npz, by name."""
    paths = sorted(folder.glob(f"{kind}-*.npz"))
    return {path.stem.removeprefix(f"{kind}-"): tensors.read(path) for path in paths}


def _whole(answers: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays are answers, one for each image."""
    return set(answers) == set(ANSWERS) and len({np.shape(one) for one in answers.values()}) == 1


def place(path: str) -> tuple[str, str]:
    """The block and the kind of a layer: "stages_1/blocks_2/attn/qkv" is ("1.2", "attn/qkv"); ("", path) outside."""
    match = re.fullmatch(r"(.*blocks_\d+)/(.+)", path)
    return (".".join(re.findall(r"\d+", match[1])), match[2]) if match else ("", path)
