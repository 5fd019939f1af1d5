"""How figures are drawn, as SVG text, and those of the measurements. Each takes plain arrays and knows no files.

The report's own are in `panels`.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

SERIES = ("#1f5fae", "#b4500f", "#23774a", "#7b4bc4", "#b02a72", "#4d5868", "#8a6410")
"""Colours of lines, each 4.5:1 against white."""
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": cycler(color=SERIES),
}
TINY = 1e-12


def svg(name: str, draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    """Draws on a new figure and returns it as an <svg> element, the same text for the same data.

    Args:
        name: of the figure, letters and digits; keeps the ids of several figures on one page apart.
        draw: gets the figure.
        size: width and height in inches.
    """
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    content = text.getvalue()
    return re.sub(r'(<[^<>]* id="|href="#|url\(#)', rf"\g<1>{name}-", content[content.index("<svg") :])


def log_scale(axes: Any) -> None:
    """A logarithmic y axis with plain numbers at it, also where the values span less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def surfaces(
    before: Float[np.ndarray, "tokens channels"], after: Float[np.ndarray, "tokens channels"], title: str
) -> str:
    """Largest absolute activation by token and channel, before and after the scaling, each in units of its median."""

    def draw(figure: Figure) -> None:
        pair = figure.subplots(1, 2, sharey=True)
        scaled = [surface / median(surface) for surface in (before, after)]
        limit = float(scaled[0].max())
        for axes, surface, name in zip(pair, scaled, ("before", "after"), strict=True):
            image = axes.imshow(surface, aspect="auto", vmin=0, vmax=limit, cmap="magma", interpolation="nearest")
            axes.set(title=f"{name}: largest {surface.max():.1f} x the median", xlabel="channel")
            axes.grid(visible=False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        pair[0].yaxis.set_major_locator(MaxNLocator(6, integer=True))
        pair[0].set_ylabel("token")
        figure.colorbar(image, ax=pair, label="|x| / median")
        figure.suptitle(title, fontsize=9)

    return svg("surfaces", draw, (9, 3))


def median(surface: Float[np.ndarray, "tokens channels"]) -> float:
    """Above 0: that of what is not silent, the largest, where half of it is."""
    return float(np.median(surface)) or float(surface.max()) or 1.0


def loudest(surface: Float[np.ndarray, "tokens channels"]) -> float:
    """The loudest channel over the median one."""
    channels = surface.max(axis=0)
    return float(channels.max() / max(np.median(channels), TINY)) or 1.0


def errors(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Relative error of every quantized product, a line for each int8 model."""

    def draw(figure: Figure) -> None:
        axes, lines = figure.subplots(), []
        keys = list(dict.fromkeys(key for values in rows.values() for key in values))
        for values in rows.values():
            line = axes.plot([100 * values.get(key, np.nan) for key in keys], marker=".", linewidth=1)
            lines += line
        axes.set(ylabel="relative error, %", ylim=(0, None))
        short = [key.replace("blocks_", "") for key in keys]
        axes.set_xticks(range(len(keys)), short, rotation=60, ha="right", fontsize=6)
        axes.legend(lines, list(rows), frameon=False, fontsize=8)

    return svg("errors", draw, (9, 3.6))


def pareto(rows: Sequence[Mapping[str, Any]]) -> str:
    """Top-1 against parameters and against operations, a line for each way to make pairs and to choose ranks.

    Args:
        rows: with name, method, budget, params, linear_gflops, top1; the one named "dense" is the reference.
    """
    lines = list(dict.fromkeys((row["method"], row["name"]) for row in rows if row["name"] != "dense"))
    methods, names = (list(dict.fromkeys(line[index] for line in lines)) for index in (0, 1))

    def draw(figure: Figure) -> None:
        for axes, key, unit, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("params", "linear_gflops"),
            (1e6, 1),
            ("parameters, millions", "GFLOPs in linear layers"),
            strict=True,
        ):
            for method, name in lines:
                of_line = [row for row in rows if (row["method"], row["name"]) == (method, name)]
                points = sorted({row["budget"] for row in of_line})
                means = [
                    [np.mean([row[what] for row in of_line if row["budget"] == budget]) for budget in points]
                    for what in (key, "top1")
                ]
                style = ["-", "--", ":", "-."][methods.index(method) % 4]
                color = SERIES[names.index(name) % len(SERIES)]
                axes.plot(
                    np.array(means[0]) / unit, means[1], style, color=color, marker=".", label=f"{name}, {method}"
                )
            dense = next(row for row in rows if row["name"] == "dense")
            axes.plot(dense[key] / unit, dense["top1"], "k*", label="dense")
            axes.set(xlabel=label, ylim=(0, 100))
        axes.figure.axes[0].set_ylabel("top-1, %")
        axes.legend(frameon=False, fontsize=6, ncols=2)

    return svg("pareto", draw, (9, 4))


def latency(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many times faster than the first model in the first runtime, with the 10 and 90 % points of the rounds.

    A panel for each number of threads and size of batch, a color for each runtime.

    Args:
        rows: of `bench latency`.
    """
    settings = list(dict.fromkeys((row["threads"], row["batch"]) for row in rows))
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    timed = {(row["runtime"], row["model"]) for row in rows}
    labels = [(runtime, model) for runtime in runtimes for model in models if (runtime, model) in timed]

    def draw(figure: Figure) -> None:
        for axes, (threads, batch) in zip(
            figure.subplots(1, len(settings), sharey=True, squeeze=False)[0], settings, strict=True
        ):
            of_setting = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
            for row in of_setting:
                place, value = labels.index((row["runtime"], row["model"])), row["wall"]["in_first"]
                if value is None:
                    continue
                error = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
                color = SERIES[runtimes.index(row["runtime"]) % len(SERIES)]
                axes.barh(place, value["median"], xerr=error, color=color, ecolor="#4a5568", capsize=1.5)
                axes.text(value["high"], place, f" {value['median']:.2f}", va="center", fontsize=7)
            axes.set(title=f"{threads} thread{'s' * (threads > 1)}, batch {batch}", xlabel="times faster")
            axes.margins(x=0.15)
        axes.set_yticks(
            range(len(labels)), [f"{model.removeprefix('random:')}, {runtime}" for runtime, model in labels], fontsize=7
        )
        axes.invert_yaxis()

    return svg("latency", draw, (3 + 2.4 * len(settings), 1 + 0.2 * len(labels)))
