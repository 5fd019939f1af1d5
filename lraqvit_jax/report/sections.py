"""The parts of the page that draw what one run did: training, singular values, activations, quantization errors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import markupsafe
import numpy as np
from jaxtyping import Float

from lraqvit_jax.report import panels, theme
from lraqvit_jax.report.figures import loudest, median
from lraqvit_jax.report.read import place

MAX_NAMES = 3
PARTS = {"x": "", "z": ", 2nd factor"}


class FigureBlock(NamedTuple):
    """A figure with the words that go with it."""

    svg: markupsafe.Markup
    caption: str


class Key(NamedTuple):
    """An entry of a legend: a line as it is drawn, and its name."""

    color: str
    dashes: str
    name: str


class Grid(NamedTuple):
    """Figures side by side, what they show together, and the numbers in a table for who wants or needs them."""

    heading: str
    text: str
    figures: Sequence[FigureBlock]
    keys: Sequence[Key] = ()
    ramp: bool = False
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


class Section(NamedTuple):
    """A titled part of the page; `grids` may be empty, and the text then says how to get them."""

    name: str
    title: str
    text: str
    grids: Sequence[Grid] = ()


def _figure(svg: str, name: str, title: str, description: str, caption: str) -> FigureBlock:
    return FigureBlock(theme.inline(svg, name, title, description), caption)


def _keys(names: Sequence[str]) -> list[Key]:
    found = []
    for index, name in enumerate(names):
        color, dashes = panels.line_style(index)
        pattern = "" if dashes == "-" else " ".join(f"{length:g}" for length in dashes[1])
        found.append(Key(theme.VARIABLES[color], pattern, name))
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [_number(row.get(name)) for row in rows]


def training(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Curves of every run, and the block errors of those that were distilled."""
    head = "training", "Training"
    if not rows:
        return Section(*head, "No training was logged. The stages teacher and distill write it.")
    by_run = {run: [row for row in rows if row["run"] == run] for run in dict.fromkeys(row["run"] for row in rows)}
    teacher = {run: mine for run, mine in by_run.items() if run == "teacher"}
    others = {run: mine for run, mine in by_run.items() if run != "teacher"}
    grids = [_curves("teacher", "The teacher", "The dense model learns from labels.", teacher)] if teacher else []
    text = "Each starts from the teacher, and is trained as its row in the table of results says."
    grids += [_curves("run", "Compressed models", text, others)] if others else []
    distilled = {run: mine for run, mine in by_run.items() if "kd_0" in mine[0]}
    grids += [_distillation(distilled)] if distilled else []
    return Section(*head, "How the models were trained, step by step.", grids)


CURVES = {
    "loss": ("training loss", True, 1, "Loss. Each run has its own objective: compare its fall, not its height."),
    "accuracy": ("accuracy on the batch, %", False, 100, "Accuracy on the batch it trains on."),
}
"""What is drawn of every run: label, whether on a logarithmic axis, unit, caption."""


def _curves(name: str, heading: str, text: str, by_run: Mapping[str, Sequence[Mapping[str, Any]]]) -> Grid:
    """Loss and accuracy over the steps of some runs."""
    drawn = []
    labelled = any(value > 0 for mine in by_run.values() for value in _column(mine, "accuracy"))
    quantities = dict(list(CURVES.items())[: 1 + labelled])  # Without labels no answer is right.
    for quantity, (label, log, unit, caption) in quantities.items():
        lines = {
            run: ([row["step"] for row in mine], [unit * value for value in _column(mine, quantity)])
            for run, mine in by_run.items()
        }
        ends = (f"{run} from {values[0]:.3g} to {values[-1]:.3g}" for run, (_, values) in lines.items())
        svg, title = panels.curve(f"{name}{quantity}", lines, label, log), f"{heading}: {label} over the steps"
        drawn.append(_figure(svg, f"{name}{quantity}", title, "; ".join(ends), caption))
    columns = ("run", "steps", "loss, first", "loss, last", *["batch accuracy, last, %"][:labelled])
    table = [
        (
            run,
            f"{mine[-1]['step']:,}",
            *(f"{_column(mine, 'loss')[at]:.4g}" for at in (0, -1)),
            *[f"{100 * _column(mine, 'accuracy')[-1]:.1f}"][:labelled],
        )
        for run, mine in by_run.items()
    ]
    keys = _keys(list(by_run)) if len(by_run) > 1 else ()
    return Grid(heading, text, drawn, keys, columns=columns, rows=table)


def _distillation(by_run: Mapping[str, Sequence[Mapping[str, Any]]]) -> Grid:
    """Block errors of the runs that have them."""
    drawn, table = [], []
    for number, (run, mine) in enumerate(by_run.items()):
        blocks = sum(name.startswith("kd_") for name in mine[0])
        errors = np.array([_column(mine, f"kd_{block}") for block in range(blocks)]).T
        first, last = errors[0], errors[-1]
        start = f"From {np.nanmean(first):.3g} to " if len(errors) > 1 else ""
        words = f"{start}{np.nanmean(last):.3g} on average over {blocks} blocks."
        drawn.append(
            _figure(
                panels.block_errors(f"blocks{number}", [row["step"] for row in mine], errors),
                f"blocks{number}",
                f"Distillation error of each block, {run}",
                words,
                f"{run}. {words}",
            )
        )
        table += [(run, str(block), f"{first[block]:.4g}", f"{last[block]:.4g}") for block in range(blocks)]
    text = (
        "How far the output of each encoder block is from the teacher's (mean squared error). Errors add up from block "
        "to block; distillation pulls all of them down together."
    )
    columns = ("run", "block", "error, first", "error, last")
    return Grid("Distillation, block by block", text, drawn, ramp=True, columns=columns, rows=table)


def spectra(values: Mapping[str, Float[np.ndarray, " k"]], ranks: Mapping[str, int]) -> Section:
    """Singular values of the dense kernels with the kept rank."""
    head = "spectra", "Singular values"
    if not ranks:
        return Section(*head, "No layer is factorized in this plan.")
    paths = [path for path in values if path in ranks]
    if not paths:
        return Section(
            *head, "Not measured yet. The stage report does it, once the stage teacher has made a dense model."
        )
    kinds: dict[str, list[str]] = {}
    for path in paths:
        kinds.setdefault(place(path)[1], []).append(path)
    drawn, table = [], []
    for number, (kind, mine) in enumerate(kinds.items()):
        kept = [ranks[path] for path in mine]
        sizes = [len(values[path]) for path in mine]
        energy = [_energy(values[path], rank) for path, rank in zip(mine, kept, strict=True)]
        words = (
            f"{kind}: {_span(kept)} of {_span(sizes)} kept, which hold {_span(energy, '.0%')} of the kernel's energy."
        )
        drawn.append(
            _figure(
                panels.spectra(f"spectra{number}", [values[path] for path in mine], kept),
                f"spectra{number}",
                f"Singular values of {kind} in every block, the kept part shaded",
                words,
                words,
            )
        )
        table.append((kind, _span(kept), _span(sizes), _span(energy, ".1%")))
    text = (
        "A kernel whose singular values fall quickly loses little when only the first are kept. Lines are whole up to "
        "the rank of their layer and dotted behind it; what every block keeps is shaded, and lighter what only some "
        "keep. Energy is the share of the sum of squares. Outputs may lose less: a pair that knows the activations, "
        "or is trained, errs where it is felt least."
    )
    columns = ("kind of layer", "rank", "singular values", "energy kept")
    return Section(*head, text, [Grid("", "", drawn, ramp=True, columns=columns, rows=table)])


def _energy(values: Float[np.ndarray, " k"], rank: int) -> float:
    squares = np.square(values, dtype=np.float64)
    return float(squares[:rank].sum() / max(squares.sum(), 1e-300))


def _span(values: Sequence[float], style: str = ",.0f") -> str:
    low, high = f"{min(values):{style}}", f"{max(values):{style}}"
    return low if low == high else f"{low} to {high}"


def activations(
    surfaces: Mapping[str, Float[np.ndarray, "tokens channels"]],
    errors: Mapping[str, Mapping[str, float]],
    name: str,
) -> Section:
    """Outliers before and after scaling, and what they do to each product.

    Args:
        surfaces: largest absolute activations, keyed "layer:product:before" and "...:after".
        errors: relative error of each product, by int8 model.
        name: of the model whose surfaces these are.
    """
    head = "activations", "Activations and quantization"
    if not errors:
        return Section(*head, "Nothing is quantized yet. The stage quantize does it.")
    keys = [key.removesuffix(":before") for key in surfaces if key.endswith(":before")]
    text = (
        "Integers have one step size for many numbers. A channel or token that is much louder than the rest stretches "
        "it and leaves few steps for the others."
    )
    grids = [*(_scaling(surfaces, keys, name) if keys else ()), _errors(errors)]
    return Section(*head, text, grids)


def _scaling(
    surfaces: Mapping[str, Float[np.ndarray, "tokens channels"]], keys: Sequence[str], name: str
) -> list[Grid]:
    """The loudest product before and after its scaling, and all products."""
    ratio = {end: {key: loudest(surfaces[f"{key}:{end}"]) for key in keys} for end in ("before", "after")}
    worst = max(keys, key=lambda key: ratio["before"][key])
    pair = {end: surfaces[f"{worst}:{end}"] for end in ("before", "after")}
    limit = max(1.0, *(float(one.max()) / median(one) for one in pair.values()))
    drawn = []
    for end, one in pair.items():
        most = one.max() / median(one)
        words = f"{end.capitalize()} scaling: the largest value is {most:.1f} times the median."
        svg = panels.surface(f"surface{end}", one, limit)
        title = f"Activations of {product(worst)} by token and channel, {end} scaling"
        drawn.append(_figure(svg, f"surface{end}", title, words, words))
    text = (
        f"Largest absolute activation of {product(worst)} in {name}, the product with the loudest channel, by token "
        "and channel. Bright columns are loud channels, bright rows loud tokens. The scaling divides the loud channels "
        "and multiplies the weights by the same vector, so that the product stays the same."
    )
    first = Grid("Before and after the scaling", text, drawn)
    columns = ("product", "before", "after")
    rows = [(product(key), *(f"{ratio[end][key]:.1f}" for end in ratio)) for key in keys]
    text = "Largest over median channel of every product that is scaled, by block: what one step size has to span."
    highest = 1.15 * max(2.0, *ratio["before"].values(), *ratio["after"].values())
    drawn = _by_kind("outliers", ratio, (1.0, highest), "largest / median")
    return [first, Grid("Loud channels", text, drawn, _keys(list(ratio)), columns=columns, rows=rows)]


def _errors(errors: Mapping[str, Mapping[str, float]]) -> Grid:
    """Relative error of every product, a line for each model."""
    percent = {name: {key: 100 * value for key, value in values.items()} for name, values in errors.items()}
    inside = [value for values in percent.values() for key, value in values.items() if place(key)[0] and value > 0]
    limits = (0.8 * max(min(inside), max(inside) / 1000), 1.25 * max(inside)) if inside else (0.0, 1.0)
    drawn = _by_kind("errors", percent, limits, "relative error, %")
    text = (
        "Error of each quantized product against the float one on the calibration images, by block: where a model "
        "loses, and what a method mends."
    )
    keys = list(dict.fromkeys(key for values in percent.values() for key in values))
    rows = [
        (product(key), *(f"{values[key]:.2f}" if key in values else "" for values in percent.values())) for key in keys
    ]
    return Grid(
        "Error of each product", text, drawn, _keys(list(errors)), columns=("product, error in %", *errors), rows=rows
    )


def _by_kind(
    name: str, lines: Mapping[str, Mapping[str, float]], limits: tuple[float, float], label: str
) -> list[FigureBlock]:
    """A panel for each kind of product in the blocks. Layers outside have no place on it; the table has them."""
    keys = list(dict.fromkeys(key for values in lines.values() for key in values if place(key)[0]))
    kinds = _kinds(keys)
    blocks = sorted({place(key)[0] for key in keys}, key=lambda block: [int(part) for part in block.split(".")])
    drawn = []
    for number, kind in enumerate(kinds):
        mine = [key for key in keys if place(key)[1] == kind]
        own = {line: {place(key)[0]: values[key] for key in mine if key in values} for line, values in lines.items()}
        words = "; ".join(f"{line} {_span(list(one.values()), '.2f')}" for line, one in own.items() if one)
        svg = panels.by_block(f"{name}{number}", own, blocks, limits, label)
        title = f"{label} of {product(kind)} over the blocks"
        drawn.append(_figure(svg, f"{name}{number}", title, words, product(kind)))
    return drawn


def _kinds(keys: Sequence[str]) -> list[str]:
    """The kinds of the products of all blocks, in the order of the forward pass: "attn/qkv:x", "attn/qkv:z", ..."""
    pairs = dict.fromkeys(tuple(place(key)[1].rpartition(":")[::2]) for key in keys)
    layers = list(dict.fromkeys(layer for layer, _ in pairs))
    return [f"{layer}:{part}" for layer, part in sorted(pairs, key=lambda pair: (layers.index(pair[0]), pair[1]))]


def product(key: str) -> str:
    """A product in words: "attn/qkv:z" is "attn/qkv, 2nd factor"."""
    path, _, part = key.rpartition(":")
    return f"{path}{PARTS.get(part, f', {part}')}" if path else key
