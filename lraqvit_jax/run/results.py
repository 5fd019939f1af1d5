"""results.json: one row a model, in the schema that scripts rely on, and the same table for people."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.config import SMALLEST

SCHEMA = 1
ROW = {"name": str, "notes": str} | dict.fromkeys(
    ("params", "linear_gflops", "size_mb", "top1", "top5", "n_images", "seconds"), float
)
MEND = "put it back, or delete it to have the models evaluated anew"


def read(directory: pathlib.Path) -> dict[str, Any]:
    """The results so far; no rows where there is no file. UserError where it is no table of results."""
    path = directory / "results.json"
    if not path.exists():
        return {"schema": SCHEMA, "model": "", "rows": []}
    results = files.json_object(path, MEND)
    if not isinstance(rows := results.get("rows"), list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has no list of rows; {MEND}.")
    for row in rows:
        files.check(row, ROW, str(path), MEND)
        if row.get("checksum", checksum(row)) != checksum(row):
            raise UserError(f"{path} is not as it was written: the row {short(row['name'])} was changed; {MEND}.")
    return results


def checksum(row: dict[str, Any]) -> str:
    """Of all else in a row; a row of an older version has none."""
    rest = {field: value for field, value in row.items() if field != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def add(directory: pathlib.Path, model: str, row: dict[str, Any], order: list[str]) -> None:
    """Adds a row with its checksum, or replaces the one of its name; rows stand in `order`."""
    row = {**row, "checksum": checksum(row)}
    rows = {present["name"]: present for present in read(directory)["rows"]} | {row["name"]: row}
    rank = {name: index for index, name in enumerate(order)}
    listed = sorted(rows.values(), key=lambda row: rank.get(row["name"], len(rank)))
    text = json.dumps({"schema": SCHEMA, "model": model, "rows": listed}, indent=1)
    files.write_atomically(directory / "results.json", text + "\n")


BOUND = 1.0
"""Points of top-1 that the pick may lose."""


def pick(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row to take: what a goal asked for; else the smallest model that loses at most BOUND points of top-1; where
    all lose more, the smallest that is at most BOUND points below the best of them. Of those within 5 % of its size,
    the most accurate. None where there is nothing to compare."""
    if asked := next((row for row in rows if row["name"] == SMALLEST and "drop" in row), None):
        return asked
    dense = next((row for row in rows if row["name"] == "dense"), None)
    others = [row for row in rows if row["name"] != "dense"]
    if dense is None or not others:
        return None
    best = max(row["top1"] for row in others)
    reference = dense["top1"] if dense["top1"] - best <= BOUND + 1e-9 else best
    good = [row for row in others if reference - row["top1"] <= BOUND + 1e-9]
    near = 1.05 * min(row["size_mb"] for row in good)
    return max((row for row in good if row["size_mb"] <= near), key=lambda row: (row["top1"], -row["size_mb"]))


CARD = {"name": str, "bytes": dict, "top1": dict, "labelled_images": int}


def card(directory: pathlib.Path, name: str) -> dict[str, Any]:
    """export/NAME.json: what the files of an artefact are; {} where it is not exported."""
    path = directory / "export" / f"{name}.json"
    if not path.exists():
        return {}
    mend = "delete it to have the artefact exported anew"
    said = files.json_object(path, mend)
    files.check(said, CARD, str(path), mend)
    return said


def exported(card: Mapping[str, Any]) -> str:
    """What a card says of the file to take: its path, size, and what it answers by itself; "" for no card."""
    suffix = next((suffix for suffix in ("onnx", "stablehlo") if suffix in card.get("bytes", {})), "")
    if not suffix:
        return ""
    top1, images = card["top1"].get(suffix), card["labelled_images"]
    answers = f", which answers {top1:.2f} % of {images:,} images itself" if files.number(top1) and images else ""
    return f"export/{card['name']}.{suffix}, {card['bytes'][suffix] / 1e6:.3f} MB{answers}"


def taken(directory: pathlib.Path) -> str:
    """The row to take and its file, in a sentence; "" where there is nothing to choose from."""
    best = pick(read(directory)["rows"])
    if best is None:
        return ""
    said = exported(card(directory, best["name"]))
    return f"To take: {best['name']}, {best['top1']:.2f} %, {best['size_mb']:.3f} MB{f'; {said}' if said else ''}."


def table(results: dict[str, Any]) -> str:
    """Formats the rows as a table; `diff` is top-1 against the row `dense`."""
    rows = results["rows"]
    dense = next((row["top1"] for row in rows if row["name"] == "dense"), None)
    width = max([len(row["name"]) for row in rows] + [4])
    lines = [f"{'name':<{width}} {'params':>11} {'GFLOPs':>8} {'MB':>8} {'top-1':>7} {'diff':>7} {'top-5':>7} {'n':>6}"]
    for row in rows:
        diff = f"{row['top1'] - dense:+.2f}" if dense is not None else ""
        lines.append(
            f"{row['name']:<{width}} {row['params']:>11,} {row['linear_gflops']:>8.4f} {row['size_mb']:>8.3f} "
            f"{row['top1']:>7.2f} {diff:>7} {row['top5']:>7.2f} {row['n_images']:>6,}"
        )
    return "\n".join(lines)
