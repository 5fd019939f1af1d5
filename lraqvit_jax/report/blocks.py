"""What a section of the page is made of: figures, legends, tables, and the words that go with them."""

from collections.abc import Sequence
from typing import NamedTuple

import markupsafe

from lraqvit_jax.report import panels, theme


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


def figure(svg: str, name: str, title: str, description: str, caption: str) -> FigureBlock:
    """An SVG with the title and description that a screen reader says, and its caption."""
    return FigureBlock(theme.inline(svg, name, title, description), caption)


def legend(names: Sequence[str]) -> list[Key]:
    """The legend of lines that are drawn in this order."""
    keys = []
    for index, name in enumerate(names):
        color, dashes = panels.line_style(index)
        pattern = "" if dashes == "-" else " ".join(f"{length:g}" for length in dashes[1])
        keys.append(Key(theme.VARIABLES[color], pattern, name))
    return keys


def span(values: Sequence[float], style: str = ",.0f") -> str:
    """The smallest to the largest of some numbers, in words."""
    low, high = f"{min(values):{style}}", f"{max(values):{style}}"
    return low if low == high else f"{low} to {high}"
