"""The report of a function: what was measured, and what became of every kernel."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

SHOWN = ("params", "macs", "size_mb", "change")


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what the task measures, as they come."""
    return list(dict.fromkeys(name for row in rows for name in row["metrics"]))


def cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A row of the table, as text."""
    metrics = [f"{row['metrics'][name]:.4g}" if name in row["metrics"] else "" for name in names]
    return [
        f"{row['params']:,}",
        f"{row['macs'] / 1e6:,.1f}",
        f"{row['size_mb']:.3f}",
        *metrics,
        f"{100 * row['change']:.2f} %" if row["name"] != "dense" else "",
        row["how"],
    ]


def header(names: Sequence[str]) -> list[str]:
    return ["parameters", "million MACs", "MB", *names, "change of outputs", "how"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in plain text."""
    names = columns(rows)
    lines = [["name", *header(names)], *([row["name"], *cells(row, names)] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            text.ljust(width) if index in (0, last) else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def page(
    model: str,
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[Mapping[str, Any]],
    found: str,
    config: Mapping[str, Any],
) -> str:
    """The page; everything is escaped.

    Args:
        model: its name.
        rows: what was measured, the function as it came first.
        places: of every site: path, shape, tokens, form and share.
        found: what `find` says.
        config: of the run.
    """
    folder, names = importlib.resources.files("lraqvit_jax.report"), columns(rows)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (folder / "function.html").read_text(encoding="utf-8")
    )
    dense, last = rows[0], rows[-1]
    return template.render(
        style=(folder / "style.css").read_text(encoding="utf-8"),
        title=f"{model}: compression report",
        lead=f"{dense['size_mb'] / last['size_mb']:.1f} times smaller: {dense['size_mb']:.3f} MB to "
        f"{last['size_mb']:.3f} MB, {dense['macs'] / 1e6:,.1f} to {last['macs'] / 1e6:,.1f} million "
        f"multiply-accumulates an example; the outputs change by {100 * last['change']:.2f} %.",
        header=header(names),
        rows=[(row["name"], cells(row, names)) for row in rows],
        places=places,
        found=found,
        config=json.dumps(config, indent=1),
    )
