"""What the numbers say, in sentences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lraqvit_jax.report import table
from lraqvit_jax.report.read import Run
from lraqvit_jax.run import results

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def lead(run: Run) -> str:
    """The run in a sentence or two."""
    dense, best = run.row("dense"), table.pick(run)
    if dense is None or best is None:
        return "Only one model so far, so there is nothing to compare yet."
    start = (
        f"The dense model answers {dense['top1']:.1f} % of {dense['n_images']:,} images right and takes {_mb(dense)}. "
    )
    if best["size_mb"] >= dense["size_mb"]:
        return f"{start}No model here is smaller and about as good."
    near = dense["top1"] - best["top1"] <= results.BOUND + 1e-9
    pick = f"{best['name']} takes {_mb(best)}, {ratio(dense, best)} times less, and answers {best['top1']:.1f} %."
    end = "" if near else " No compressed model here comes within a point."
    return f"{start}{pick}{end}{file(run, best)}"


def file(run: Run, row: Mapping[str, Any]) -> str:
    """The exported file of a row and what it answers itself; "" where there is none."""
    said = results.exported(run.exports.get(row["name"], {}))
    return f" Its file is {said}." if said else ""


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """Large numbers on the pick: value, what it counts, and between what."""
    dense, best = run.row("dense"), table.pick(run)
    if dense is None or best is None:
        return []
    shown = [
        (f"{ratio(dense, best)}{TIMES}", "smaller", f"{_mb(dense)} to {_mb(best)}"),
        (signed(best["top1"] - dense["top1"], 1), "points of top-1", f"{dense['top1']:.1f} % to {best['top1']:.1f} %"),
        (
            f"{_of(dense, best, 'linear_gflops')}{TIMES}",
            "fewer operations",
            f"{_gflops(dense)} to {_gflops(best)} GFLOPs",
        ),
    ]
    times, _ = table.milliseconds(run)
    if {"dense", best["name"]} <= set(times):
        shown.append(_speed("", times["dense"], times[best["name"]]))
    elif (other := _fastest(run, times)) is not None:
        shown.append(_speed(f": {other}", times["dense"], times[other]))
    return shown


def _speed(whose: str, dense: float, other: float) -> tuple[str, str, str]:
    """The tile of two latencies in milliseconds."""
    word, times = ("faster", dense / other) if other <= dense else ("slower", other / dense)
    return f"{times:.1f}{TIMES}", f"{word}{whose}", f"{dense:.3g} ms to {other:.3g} ms"


def points(run: Run) -> list[str]:
    """What each step cost, and how sure that is."""
    dense, best, sentences = run.row("dense"), table.pick(run), []
    if dense is None or best is None:
        return []
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in table.ordered(run):
        groups.setdefault(table.group(run, row["name"]), []).append(row)
    if factorized := groups.get("factorized"):
        row = factorized[0]
        share = 100 * row["params"] / dense["params"]
        sentences.append(
            f"Low rank alone keeps {share:.0f} % of the parameters. Without any training, {row['name']} answers "
            f"{row['top1']:.1f} %, {_to(dense, row)}."
        )
    if trained := groups.get("trained"):
        row = trained[0]
        sentences.append(f"Trained, {row['name']} answers {row['top1']:.1f} %, {_to(dense, row)}.")
    if integers := groups.get("integers"):
        row, low = integers[0], integers[-1]
        worst = f"; the least accurate of them, {low['name']}, {low['top1']:.1f} %" if low is not row else ""
        sentences.append(f"In integers, {row['name']} takes {_mb(row)} and answers {row['top1']:.1f} %{worst}.")
    sentences.append(sure(run, best))
    return sentences


def sure(run: Run, best: Mapping[str, Any]) -> str:
    """How far the pick's difference can be trusted."""
    pair, images = table.pair(run, best["name"]), best["n_images"]
    unit = f"One image in {images:,} is {100 / max(1, images):.2g} points."
    if pair is None:
        error = 196 * math.sqrt(max(1e-9, best["top1"] / 100 * (1 - best["top1"] / 100)) / max(1, images))
        return (
            f"{unit} An accuracy near {best['top1']:.0f} % is known to about ±{error:.1f} points from so many (95 %)."
        )
    return (
        f"{unit} {best['name']} and the dense model answer {pair.differ:,} of {pair.images:,} images differently: "
        f"{pair.dense:,} only the dense model has right, {pair.other:,} only {best['name']}. Their difference in top-1 "
        f"is known to ±{pair.margin:.1f} points (95 %)."
    )


def comparison(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Several runs: what is to be known before they are compared, and the pick of each."""
    images = {(run.options.data.eval, row["n_images"]) for run in runs for row in run.rows}
    careful = " They are evaluated on different images, so compare differences, not accuracies." * (len(images) > 1)
    sentences = []
    for run in runs:
        best, dense = table.pick(run), run.row("dense")
        if best is None or dense is None:
            sentences.append(f"{run.name} has no dense and compressed model to compare.")
            continue
        diff = signed(best["top1"] - dense["top1"], 1)
        sentences.append(
            f"{run.name}: {best['name']} takes {_mb(best)}, {ratio(dense, best)} times less than its dense model, and "
            f"answers {best['top1']:.1f} % ({diff} points)."
        )
    return f"{len(runs)} runs side by side, and the pick of each.{careful}", sentences


def latency(run: Run) -> str:
    """Where the milliseconds come from, or how to get some."""
    times, where = table.milliseconds(run)
    return f"Milliseconds are medians of a call in {where}." if times else ""


def measure(run: Run) -> str:
    """The command that measures latency; "" where it is measured."""
    if table.milliseconds(run)[0]:
        return ""
    best = table.pick(run)
    names = ",".join(repr(name) for name in dict.fromkeys(["dense", best["name"] if best else "dense"]))
    return (
        "python -m lraqvit_jax.bench latency --config CONFIG --workdir DIR "
        f'--config.latency.models="({names},)" --config.latency.runtimes="(\'onnxruntime\',)"'
    )


def _fastest(run: Run, times: Mapping[str, float]) -> str | None:
    """The fastest model that loses no more than a pick may; None where that is none, or nothing is measured."""
    dense = run.row("dense")
    rows = [row for row in run.rows if row["name"] in times and row["name"] != "dense"]
    good = [row["name"] for row in rows if dense and dense["top1"] - row["top1"] <= results.BOUND + 1e-9]
    return min(good, key=lambda name: times[name]) if good and "dense" in times else None


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, a true minus, and no sign at zero."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def ratio(dense: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return _of(dense, row, "size_mb")


def _of(dense: Mapping[str, Any], row: Mapping[str, Any], key: str) -> str:
    return f"{dense[key] / row[key]:.1f}" if row[key] else "-"


def _mb(row: Mapping[str, Any]) -> str:
    return f"{row['size_mb']:.3g} MB" if row["size_mb"] < 1000 else f"{row['size_mb']:,.0f} MB"


def _gflops(row: Mapping[str, Any]) -> str:
    return f"{row['linear_gflops']:.3g}"


def _to(dense: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    diff = row["top1"] - dense["top1"]
    if abs(diff) < 0.005:
        return "as the dense model"
    return f"{abs(diff):.1f} points {'more' if diff > 0 else 'less'} than the dense model"
