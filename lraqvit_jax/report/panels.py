"""The report's figures, each one small panel that a phone shows whole. Each takes plain arrays, and gives SVG text."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from lraqvit_jax.report.figures import SERIES, TINY, log_scale, median, svg
from lraqvit_jax.report.theme import INK, block_color

WIDTH, HEIGHT = 3.6, 2.5
SHAPES = {"dense": "*", "factorized": "s", "trained": "^", "integers": "o"}
COLORS = dict(zip(SHAPES, (INK, SERIES[1], SERIES[2], SERIES[0]), strict=True))
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (7, 2, 1, 2)))
LOW, TIMES = 2.0, 3.0
"""A point is drawn at the edge where it is farther below the best than LOW points and TIMES the median distance."""
GAP = 8.5
"""Between the numbers of neighbouring points, in typographic points."""
CLOSE = 11.0
RAISED = 3.5
"""By how much a number stands above its point, and off the line that starts there."""
ENOUGH = 3
WIDEST = 256
"""Columns of a drawn surface; the loudest of several channels stands for them."""


def line_style(index: int) -> tuple[str, Any]:
    """Colour and dashes of a series: colours first, then dashes too."""
    return SERIES[index % len(SERIES)], DASHES[index // len(SERIES) % len(DASHES)]


def _panel(name: str, draw: Callable[[Any], None], height: float = HEIGHT) -> str:
    def whole(figure: Figure) -> None:
        draw(figure.subplots())

    return svg(name, whole, (WIDTH, height))


def _steps(axes: Any) -> None:
    """An axis of steps, from the start."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def curve(name: str, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], label: str, log: bool) -> str:
    """A quantity over the steps of several runs."""

    def draw(axes: Any) -> None:
        for index, (steps, values) in enumerate(lines.values()):
            color, dashes = line_style(index)
            marker = "." if len(steps) < 3 else None
            axes.plot(steps, values, color=color, linestyle=dashes, linewidth=1.3, marker=marker)
        axes.set(xlabel="step", ylabel=label)
        _steps(axes)
        if log:
            log_scale(axes)

    return _panel(name, draw)


def block_errors(name: str, steps: Sequence[int], errors: Float[np.ndarray, "steps blocks"]) -> str:
    """Squared error of each encoder block against the teacher's over the steps of one run."""

    def draw(axes: Any) -> None:
        for block, values in enumerate(errors.T):
            marker = "." if len(steps) < 3 else None
            axes.plot(steps, values, color=block_color(block, errors.shape[1]), linewidth=1.3, marker=marker)
        axes.set(xlabel="step", ylabel="squared error")
        _steps(axes)
        log_scale(axes)

    return _panel(name, draw)


def spectra(name: str, values: Sequence[Float[np.ndarray, " k"]], ranks: Sequence[int]) -> str:
    """Singular values of kernels of one kind, a line a block; up to its rank a line is whole, behind it dotted."""

    def draw(axes: Any) -> None:
        for index, (of_layer, rank) in enumerate(zip(values, ranks, strict=True)):
            share, color = of_layer / max(of_layer[0], TINY), block_color(index, len(values))
            axes.plot(np.arange(1, rank + 1), share[:rank], color=color, linewidth=1.2)
            axes.plot(np.arange(rank, len(of_layer) + 1), share[rank - 1 :], color=color, linewidth=0.9, linestyle=":")
        axes.axvspan(0, min(ranks), color=SERIES[0], alpha=0.16, linewidth=0)
        if max(ranks) > min(ranks):
            axes.axvspan(min(ranks), max(ranks), color=SERIES[0], alpha=0.07, linewidth=0)
        axes.set(xlabel="singular value, by size", ylabel="share of the largest")
        axes.set(ylim=(0, 1.02), xlim=(0, max(map(len, values))))

    return _panel(name, draw)


def surface(name: str, values: Float[np.ndarray, "tokens channels"], limit: float) -> str:
    """Largest absolute activation by token and channel, in units of its median, up to `limit`."""
    channels = values.shape[1]
    drawn = _loudest_of(values / median(values))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        extent = (-0.5, channels - 0.5, len(values) - 0.5, -0.5)
        norm = PowerNorm(0.5, 0, limit)
        image = axes.imshow(drawn, aspect="auto", norm=norm, cmap="magma", interpolation="none", extent=extent)
        axes.set(xlabel="channel", ylabel="token")
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        bar = figure.colorbar(image, ax=axes, label="times the median", pad=0.02)
        ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= limit]
        bar.set_ticks(_apart(ticks, limit))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    return svg(name, draw, (WIDTH, HEIGHT))


def _apart(ticks: Sequence[float], limit: float) -> list[float]:
    """The ticks that are far enough apart on an axis of square roots, from the largest down."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or math.sqrt(kept[-1]) - math.sqrt(tick) > 0.12 * math.sqrt(limit):
            kept.append(tick)
    return kept


def _loudest_of(values: Float[np.ndarray, "tokens channels"]) -> Float[np.ndarray, "tokens columns"]:
    """At most WIDEST columns: the largest of neighbouring channels, so that a single loud one stays to be seen."""
    step = -(-values.shape[1] // WIDEST)
    return np.maximum.reduceat(values, np.arange(0, values.shape[1], step), axis=1)


def by_block(
    name: str, lines: Mapping[str, Mapping[str, float]], blocks: Sequence[str], limits: tuple[float, float], label: str
) -> str:
    """A quantity of one kind of product over the blocks, a line for each of several models.

    Args:
        name: of the figure.
        lines: by model, values by block.
        blocks: their labels, in order.
        limits: of the axis, the same for all panels; from above 0 it is logarithmic.
        label: of the axis.
    """

    def draw(axes: Any) -> None:
        for index, values in enumerate(lines.values()):
            color, dashes = line_style(index)
            row = [values.get(block, np.nan) for block in blocks]
            axes.plot(range(len(blocks)), row, color=color, linestyle=dashes, marker=".", markersize=4, linewidth=1.1)
        axes.set(xlabel="block", ylabel=label)
        if limits[0] > 0:
            log_scale(axes)
        axes.set_ylim(limits)
        axes.set_xlim(-0.4, len(blocks) - 0.6)
        every = -(-len(blocks) // 8)
        axes.set_xticks(range(0, len(blocks), every), blocks[::every])

    return _panel(name, draw, 2.1)


def tradeoff(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    front: Sequence[Mapping[str, Any]],
    colors: Mapping[str, str] | None = None,
) -> str:
    """Top-1 against what it costs: a numbered point a model, and a line through those that no other beats.

    Args:
        name: of the figure.
        rows: with number, run, group, top1 and `key`.
        key: of the cost.
        label: of its axis.
        front: the rows on the line, by cost.
        colors: by run, where there are several; else the group tells the colour.
    """
    costs, values = ([float(row[what]) for row in rows] for what in (key, "top1"))
    floor = max(values) - max(LOW, TIMES * (max(values) - float(np.median(values))))
    below = [value < floor for value in values]
    shown = [max(value, floor) for value in values]

    def draw(axes: Any) -> None:
        places = [(row[key], max(row["top1"], floor)) for row in front]
        axes.step(*zip(*places, strict=True), where="post", color=SERIES[5], linewidth=0.9, alpha=0.6)
        for row, cost, value, low in zip(rows, costs, shown, below, strict=True):
            color = colors[row["run"]] if colors else COLORS[row["group"]]
            shape = "v" if low else SHAPES[row["group"]]
            axes.plot(cost, value, shape, color=color, markersize=7 if shape == "*" else 4.5)
        axes.set(xlabel=label, ylabel="top-1, %")
        room = 0.12 * (max(shown) - min(shown)) + 0.2
        axes.set_ylim(min(shown) - room, max(shown) + room)
        _cost_axis(axes, costs)
        labelled = zip(rows, below, strict=True)
        words = [f"{row['number']}" + (f" ({row['top1']:.1f})" if low else "") for row, low in labelled]
        _number(axes, costs, shown, words)

    return _panel(name, draw, 2.9)


def frontier(
    name: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    front: Sequence[tuple[float, float]],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """Top-1 against millions of parameters: lines of what was measured, and a numbered mark for each model of a run.

    Args:
        name: of the figure.
        lines: by their names, points by size.
        front: the points that no other beats, by size.
        rows: with number, group, params, top1.
    """
    costs, values = [row["params"] / 1e6 for row in rows], [float(row["top1"]) for row in rows]

    def draw(axes: Any) -> None:
        axes.plot(*zip(*front, strict=True), color=SERIES[5], linewidth=7, alpha=0.2, solid_capstyle="round")
        for index, points in enumerate(lines.values()):
            color, dashes = line_style(index)
            axes.plot(*zip(*points, strict=True), color=color, linestyle=dashes, marker=".", linewidth=1.2)
        for row, cost, value in zip(rows, costs, values, strict=True):
            size = 8 if row["group"] == "dense" else 6
            axes.plot(cost, value, SHAPES[row["group"]], color=INK, markersize=size, fillstyle="none")
        axes.set(xlabel="parameters, millions", ylabel="top-1, %")
        axes.margins(y=0.1)
        _cost_axis(axes, [*costs, *(cost for points in lines.values() for cost, _ in points)])
        _number(axes, costs, values, [str(row["number"]) for row in rows])

    return _panel(name, draw, 2.9)


class Lost(NamedTuple):
    """What the models of a search lost.

    Attributes:
        label: of the cost.
        lines: by family, (cost, points of top-1 lost) by cost.
        chosen: one of these, or None.
    """

    label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    chosen: tuple[float, float] | None


def search(name: str, lost: Lost) -> str:
    """What the models of a search lost, less above: a line for each family, a ring around what was chosen."""
    return _panel(name, functools.partial(_lost, lost=lost), 2.9)


def searches(every: Sequence[Lost]) -> str:
    """A figure by itself: a panel for each cost, and the legend."""

    def draw(figure: Figure) -> None:
        several = np.atleast_1d(figure.subplots(1, len(every), sharey=True))
        for axes, lost in zip(several, every, strict=True):
            _lost(axes, lost)
        several[-1].legend(frameon=False, fontsize=6)

    return svg("search", draw, (4 * len(every) + 1, 4))


def _lost(axes: Any, lost: Lost) -> None:
    for index, (family, points) in enumerate(lost.lines.items()):
        color, dashes = line_style(index)
        axes.plot(*zip(*points, strict=True), color=color, linestyle=dashes, marker=".", linewidth=1.2, label=family)
    if lost.chosen:
        axes.plot(*lost.chosen, "o", color=INK, markersize=10, fillstyle="none")
    values = [loss for points in lost.lines.values() for _, loss in points]
    axes.set(xlabel=lost.label, ylabel="points lost", ylim=(min(12, max(values) + 0.5), min(-0.5, min(values) - 0.5)))
    _cost_axis(axes, [cost for points in lost.lines.values() for cost, _ in points])


def _cost_axis(axes: Any, costs: Sequence[float]) -> None:
    """Logarithmic where costs differ by more than 1.5, with plain numbers at the ticks, and room for labels."""
    low, high = min(costs), max(costs)
    if high <= 1.5 * low:
        room = 0.15 * (high - low) or 0.1 * high
        axes.set_xlim(low - room, high + 1.6 * room)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return
    axes.set_xscale("log")
    room = (high / low) ** 0.12
    axes.set_xlim(low / room, high * room**1.6)
    axes.xaxis.set_major_locator(FixedLocator(_round_ticks(low / room, high * room**1.6)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


ROUND = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
"""Round numbers of a decade, ever more of them."""


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends of a logarithmic axis: as round as they can be and still be ENOUGH."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (*ROUND, np.arange(1, 10, 0.5), np.arange(1, 10, 0.2)):
        ticks = [float(step) * 10.0**power for power in powers for step in steps]
        if len(ticks := [tick for tick in ticks if low <= tick <= high]) >= ENOUGH:
            break
    return ticks


def _number(axes: Any, costs: Sequence[float], values: Sequence[float], words: Sequence[str]) -> None:
    """Numbers beside points, moved apart where points are close, with a thin line to the point where far from it."""
    axes.figure.draw_without_rendering()
    spots = axes.transData.transform(list(zip(costs, values, strict=True))) * 72 / axes.figure.dpi
    bottom, top = (axes.bbox.y0 * 72 / axes.figure.dpi + 4, axes.bbox.y1 * 72 / axes.figure.dpi)
    for cluster in _clusters([float(x) for x, _ in spots]):
        order = sorted(cluster, key=lambda index: (-spots[index][1], index))
        right = max(spots[index][0] for index in cluster)
        heights = _spread([float(spots[index][1]) + RAISED for index in order], top, bottom)
        for index, height in zip(order, heights, strict=True):
            x, y = spots[index]
            offset = (right - x + 7, height - y)
            arrow = {"arrowstyle": "-", "linewidth": 0.5, "color": SERIES[5], "shrinkA": 0, "shrinkB": 2}
            style: Any = {"fontsize": 7.5, "va": "center", "textcoords": "offset points"}
            far = abs(offset[1] - RAISED) > 3 or offset[0] > 9
            spot = costs[index], values[index]
            axes.annotate(words[index], spot, offset, arrowprops=arrow if far else None, **style).set_in_layout(False)


def _clusters(places: Sequence[float]) -> list[list[int]]:
    """Indices of points whose labels would meet: neighbours less than CLOSE points apart on the axis."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    clusters = [[order[0]]]
    for before, index in itertools.pairwise(order):
        if places[index] - places[before] < CLOSE:
            clusters[-1].append(index)
        else:
            clusters.append([index])
    return clusters


def _spread(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Descending heights, moved as little as keeps them GAP apart (least squares), and between top and bottom."""
    last = len(heights) - 1
    gap = min(GAP, (top - bottom) / max(1, last))
    pools: list[list[float]] = []
    for index, height in enumerate(heights):
        pools.append([height + index * gap])
        while len(pools) > 1 and np.mean(pools[-2]) < np.mean(pools[-1]):
            lower = pools.pop()
            pools[-1] += lower
    moved = [float(np.mean(pool)) for pool in pools for _ in pool]
    moved = [min(height, top) - index * gap for index, height in enumerate(moved)]
    return [max(height, bottom + (last - index) * gap) for index, height in enumerate(moved)]
