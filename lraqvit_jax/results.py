"""results.json: one row a model, in the schema that scripts rely on, and the same table for people."""

import json
import pathlib
from typing import Any

from lraqvit_jax import metrics

SCHEMA = 1


def read(directory: pathlib.Path) -> dict[str, Any]:
    """The results so far; no rows where there is no file."""
    path = directory / "results.json"
    return json.loads(path.read_text()) if path.exists() else {"schema": SCHEMA, "model": "", "rows": []}


def add(directory: pathlib.Path, model: str, row: dict[str, Any], order: list[str]) -> None:
    """Adds a row, or replaces the one of its name; rows stand in `order`."""
    rows = {one["name"]: one for one in read(directory)["rows"]} | {row["name"]: row}
    rank = {name: index for index, name in enumerate(order)}
    listed = sorted(rows.values(), key=lambda one: rank.get(one["name"], len(rank)))
    text = json.dumps({"schema": SCHEMA, "model": model, "rows": listed}, indent=1)
    metrics.write_atomically(directory / "results.json", text + "\n")


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
