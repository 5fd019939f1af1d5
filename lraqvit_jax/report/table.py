"""The rows of the result table: in groups, in order, compared with the dense model image by image; and the pick."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lraqvit_jax.base import paired
from lraqvit_jax.config import DENSE_INTEGERS
from lraqvit_jax.report.read import Run
from lraqvit_jax.run import results

GROUPS = ("dense", "factorized", "trained", "integers")
TITLES = dict(
    zip(GROUPS, ("Dense, the reference", "Low rank, not trained", "Low rank, trained", "Integers"), strict=True)
)


class Pair(NamedTuple):
    """Two models on the same images.

    Attributes:
        images: how many.
        both: right in both.
        dense: right in the dense model alone.
        other: right in the other alone.
        differ: answers that are not the same, right or wrong.
        margin: half the 95 % interval of the difference in top-1, in points.
    """

    images: int
    both: int
    dense: int
    other: int
    differ: int
    margin: float


def group(run: Run, name: str) -> str:
    """Which of GROUPS a row belongs to."""
    if name == "dense":
        return "dense"
    if name in (DENSE_INTEGERS, *run.options.quant.methods):
        return "integers"
    options = run.options
    steps = options.runs[name].steps or options.steps or options.epochs if name in options.runs else 0
    return "trained" if steps else "factorized"


def ordered(run: Run) -> list[Mapping[str, Any]]:
    """The rows, group by group, in each the most accurate first, and of equals the smallest."""
    return sorted(run.rows, key=lambda row: (GROUPS.index(group(run, row["name"])), -row["top1"], row["size_mb"]))


def pick(run: Run) -> Mapping[str, Any] | None:
    """The row of a run to take; see `results.pick`."""
    return results.pick(run.rows)


def pair(run: Run, name: str) -> Pair | None:
    """The dense model and another, image by image; None where the answers of one were not kept."""
    if not {"dense", name} <= set(run.answers):
        return None
    first, second = run.answers["dense"], run.answers[name]
    if not np.array_equal(first["image"], second["image"]) or not np.array_equal(first["label"], second["label"]):
        return None
    right = [one["answer"] == one["label"] for one in (first, second)]
    images, lost, won = len(right[0]), int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    margin = 100 * paired.difference(lost, won, images)[1]
    differ = int(np.sum(first["answer"] != second["answer"]))
    return Pair(images, int(np.sum(right[0] & right[1])), lost, won, differ, margin)


def milliseconds(run: Run) -> tuple[dict[str, float], str]:
    """Median latency of the models with a row, by name, and in what it was measured: of the settings of `bench
    latency`, the one that has most of them, and of those the first."""
    settings: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in run.latency.get("rows", ()):
        if run.row(str(row.get("model"))):
            value = row.get("wall", {}).get("ms", {}).get("median")
            setting = row.get("runtime", ""), row.get("threads", 1), row.get("batch", 1)
            if isinstance(value, int | float):
                settings.setdefault(setting, {})[row["model"]] = float(value)
    if not settings:
        return {}, ""
    runtime, threads, batch = max(settings, key=lambda setting: len(settings[setting]))
    processor = run.latency.get("machine", {}).get("processor", "")
    words = f"{runtime}, {threads} thread{'s' * (threads != 1)}, batch of {batch}" + (
        f", {processor}" * bool(processor)
    )
    return settings[runtime, threads, batch], words


def rows(run: Run, start: int = 1) -> list[dict[str, Any]]:
    """The table's rows with what is derived: number, group, best of its group, pick, difference, margin, ms."""
    dense, chosen, times = run.row("dense"), pick(run), milliseconds(run)[0]
    listed = ordered(run)
    best: dict[str, float] = {}
    for row in listed:
        best.setdefault(group(run, row["name"]), row["top1"])
    return [
        {
            **row,
            "number": number,
            "run": run.name,
            "group": group(run, row["name"]),
            "best": row["top1"] == best[group(run, row["name"])],
            "pick": row is chosen,
            "diff": None if dense is None else row["top1"] - dense["top1"],
            "smaller": None if dense is None else dense["size_mb"] / row["size_mb"],
            "pair": pair(run, row["name"]) if row["name"] != "dense" else None,
            "ms": times.get(row["name"]),
        }
        for number, row in enumerate(listed, start)
    ]


def front(listed: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """The rows that no other beats in both `key` (less is better) and top-1, from the least to the most of `key`."""
    best: list[Mapping[str, Any]] = []
    for row in sorted(listed, key=lambda row: (row[key], -row["top1"])):
        if not best or row["top1"] > best[-1]["top1"]:
            best.append(row)
    return best
