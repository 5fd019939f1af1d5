"""The part of the page on activations: outliers before and after scaling, and the error of each product."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lraqvit_jax.report import panels
from lraqvit_jax.report.blocks import FigureBlock, Grid, Section, figure, legend, span
from lraqvit_jax.report.figures import loudest, median
from lraqvit_jax.report.read import place

PARTS = {"x": "", "z": ", 2nd factor"}


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
    limit = max(1.0, *(float(surface.max()) / median(surface) for surface in pair.values()))
    drawn = []
    for end, surface in pair.items():
        most = surface.max() / median(surface)
        words = f"{end.capitalize()} scaling: the largest value is {most:.1f} times the median."
        svg = panels.surface(f"surface{end}", surface, limit)
        title = f"Activations of {product(worst)} by token and channel, {end} scaling"
        drawn.append(figure(svg, f"surface{end}", title, words, words))
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
    return [first, Grid("Loud channels", text, drawn, legend(list(ratio)), columns=columns, rows=rows)]


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
        "Error of each product", text, drawn, legend(list(errors)), columns=("product, error in %", *errors), rows=rows
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
        of_kind = [key for key in keys if place(key)[1] == kind]
        by_line = {
            line: {place(key)[0]: values[key] for key in of_kind if key in values} for line, values in lines.items()
        }
        words = "; ".join(
            f"{line} {span(list(by_block.values()), '.2f')}" for line, by_block in by_line.items() if by_block
        )
        svg = panels.by_block(f"{name}{number}", by_line, blocks, limits, label)
        title = f"{label} of {product(kind)} over the blocks"
        drawn.append(figure(svg, f"{name}{number}", title, words, product(kind)))
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
