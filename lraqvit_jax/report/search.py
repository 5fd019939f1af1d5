"""The part of the page on the search for the smallest model: what was tried, what it lost, what was taken."""

from collections.abc import Mapping, Sequence
from typing import Any

from lraqvit_jax.report import panels
from lraqvit_jax.report.blocks import Grid, figure, legend
from lraqvit_jax.report.read import Run

HEADING = "Search: the smallest that is good enough"
FAMILIES = {
    "both": "channels, ranks and bits together",
    "pairs": "plain pairs, floats",
    "products": "channels and pairs with identity blocks, floats",
    "integers": "dense kernels, bits alone",
}
COSTS = {"size_mb": ("MB", 1.0), "macs": ("multiply-accumulates, millions", 1e6), "ms": ("milliseconds an image", 1.0)}
COLUMNS = ("model", "family", "MB", "MACs, millions", "points lost", "interval", "expected", "images", "kept")


def search(run: Run) -> list[Grid]:
    """What the models of a search lost against what they cost; [] where nothing was searched."""
    points = run.search.get("points", [])
    if not points:
        return []
    chosen = _chosen(points, run.search.get("chosen", ""))
    drawn, families = [], list[str]()
    for key, lost in _lost(points, chosen).items():
        name, families = f"search{key.replace('_', '')}", list(lost.lines)
        title = f"Points of top-1 lost against {lost.label}, {len(points)} models of a search"
        words = f"Taken: {chosen['name']}." if chosen else "None is taken yet."
        drawn.append(figure(panels.search(name, lost), name, title, words, f"Points lost against {lost.label}."))
    return [Grid(HEADING, _text(run, chosen), drawn, legend(families), columns=COLUMNS, rows=_rows(points))]


def picture(points: Sequence[Mapping[str, Any]], chosen: str) -> str:
    """The same as a figure by itself, SVG.

    Args:
        points: of search.json.
        chosen: name of one.
    """
    return panels.searches(list(_lost(points, _chosen(points, chosen)).values()))


def _chosen(points: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((point for point in points if point["name"] == name), None)


def _lost(points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None) -> dict[str, panels.Lost]:
    """By the costs that are known of all."""
    by_line: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        name = FAMILIES[point["family"]] + (f", {point['steps']} steps of distillation" if point["steps"] else "")
        by_line.setdefault(name, []).append(point)
    return {
        key: panels.Lost(
            label,
            {name: sorted((one[key] / unit, one["drop"]) for one in of_line) for name, of_line in by_line.items()},
            (chosen[key] / unit, chosen["drop"]) if chosen else None,
        )
        for key, (label, unit) in COSTS.items()
        if all(key in point for point in points)
    }


def _text(run: Run, chosen: Mapping[str, Any] | None) -> str:
    images, limit = run.search.get("images", 0), run.search.get("limit")
    asked = f"The search asked {images:,} images of data.eval; the others only the final numbers saw."
    allowed = f" Allowed were {limit:.2f} points by the rule {run.search.get('by')!r}." if limit is not None else ""
    refused = " A model that was refused early was asked fewer."
    taken = f" The ring is what was taken, {chosen['name']}; its row of the table is `smallest`." if chosen else ""
    names = " Every model of it is an artefact under its name, to load or to export."
    return asked + allowed + refused + taken + names


def _rows(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    ordered = sorted(points, key=lambda point: (list(FAMILIES).index(point["family"]), -point["size_mb"]))
    return [
        (
            point["name"],
            FAMILIES[point["family"]],
            f"{point['size_mb']:.3f}",
            f"{point['macs'] / 1e6:,.0f}",
            f"{point['drop']:+.2f}",
            f"{point['drop_low']:.2f} to {point['drop_high']:.2f}",
            f"{point['expected']:.2f}",
            f"{point['images']:,}",
            "yes" if point["keeps"] else "no",
        )
        for point in ordered
    ]
