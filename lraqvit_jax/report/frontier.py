"""The part of the page on what `bench lowrank` measured in the same work directory: accuracy at every size."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lraqvit_jax.report import panels, table
from lraqvit_jax.report.blocks import Grid, figure, legend
from lraqvit_jax.report.read import Run

HEADING = "Size against accuracy, every budget"
COLUMNS = ("ranks, pairs", "budget", "parameters, millions", "top-1, %", "seeds", "on the frontier")


def frontier(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """A line for each way to make pairs and to choose ranks, the run's own models on it; [] where nothing is measured.

    Args:
        run: with the rows of `bench lowrank`.
        rows: of the result table, numbered.
    """
    means = averages(run.lowrank.get("rows", ()))
    if not means:
        return []
    best = table.front(means, "params")
    by_line: dict[str, list[Mapping[str, Any]]] = {}
    for row in means:
        by_line.setdefault(row["line"], []).append(row)
    lines = {line: [(row["params"], row["top1"]) for row in of_line] for line, of_line in by_line.items()}
    svg = panels.frontier("frontier", lines, [(row["params"], row["top1"]) for row in best], rows)
    on_it = "; ".join(f"{row['line']}, {row['params']:.3g} M, {row['top1']:.1f} %" for row in best)
    title = f"Top-1 accuracy against parameters, {len(means)} points of {len(lines)} ways to compress"
    words = f"Nothing measured is both smaller and better than these: {on_it}."
    text = (
        "What bench lowrank measured in this work directory: low rank at every budget, without training unless the "
        "name is that of a run; means over seeds. The broad grey line joins what nothing else beats in both. The "
        "run's own models are marked and numbered as in the table of results, whatever their bits: those above the "
        "line gained by training, or by their ranks."
    )
    drawn = [figure(svg, "frontier", title, words, "Top-1 against parameters.")]
    cells = [_cells(row, row in best) for row in means]
    return [Grid(HEADING, text, drawn, legend(list(lines)), columns=COLUMNS, rows=cells)]


def averages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with line, budget, params in millions, top1, its standard deviation over seeds and their number; by line,
    the largest first."""
    cells: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["name"] != "dense":
            cells.setdefault((f"{row['method']}, {row['name']}", row["budget"]), []).append(row)
    means = [
        {
            "line": line,
            "budget": budget,
            "params": statistics.fmean(row["params"] for row in of_cell) / 1e6,
            "top1": statistics.fmean(row["top1"] for row in of_cell),
            "deviation": statistics.stdev(row["top1"] for row in of_cell) if len(of_cell) > 1 else None,
            "seeds": len(of_cell),
        }
        for (line, budget), of_cell in cells.items()
    ]
    order = list(dict.fromkeys(row["line"] for row in means))
    return sorted(means, key=lambda row: (order.index(row["line"]), -row["params"]))


def _cells(row: Mapping[str, Any], best: bool) -> tuple[str, ...]:
    spread = f" ± {row['deviation']:.2f}" if row["deviation"] is not None else ""
    numbers = (f"{row['budget']:g}", f"{row['params']:.3f}", f"{row['top1']:.2f}{spread}", str(row["seeds"]))
    return (row["line"], *numbers, "yes" if best else "")
