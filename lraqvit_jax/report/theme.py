"""Colours of the page, light and dark, and how a drawn figure takes them.

Figures are drawn in the light colours. Inside the page each colour becomes a CSS variable, so that a figure follows the
page into the dark, and the text takes the colour and the typeface of what is around it.
"""

import html
import re

import markupsafe

from lraqvit_jax.report.figures import SERIES

INK, GRID = "#000000", "#b0b0b0"
"""What matplotlib draws axes and grids in."""
DARK = ("#7db4f5", "#f2a36b", "#73d09c", "#bfa0f5", "#f28fc0", "#aab6c6", "#e0bd5c")
"""SERIES on a dark page."""
STEPS = 9
ENDS = ((0x1D4ED8, 0x8B2FC9, 0xC9256B, 0xC2570C), (0x7CB7FF, 0xC79BFF, 0xFF8FB5, 0xFFC14D))
"""Corners of the ramp from the first block, blue, to the last, orange: light and dark."""


def ramp(corners: tuple[int, ...]) -> tuple[str, ...]:
    """STEPS colours on the line through the corners."""
    colors = []
    for step in range(STEPS):
        place = step / (STEPS - 1) * (len(corners) - 1)
        index = min(int(place), len(corners) - 2)
        first, second = (corners[index + offset].to_bytes(3, "big") for offset in (0, 1))
        share = place - index
        colors.append("#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(first, second, strict=True)))
    return tuple(colors)


RAMP, DARK_RAMP = map(ramp, ENDS)
VARIABLES = {
    **{color: f"--c{index}" for index, color in enumerate(SERIES)},
    **{color: f"--r{index}" for index, color in enumerate(RAMP)},
    GRID: "--line",
}


def block_color(index: int, blocks: int) -> str:
    """Of a block, from blue, the first, to orange, the last."""
    return RAMP[round((STEPS - 1) * index / max(1, blocks - 1))]


def css(dark: bool) -> markupsafe.Markup:
    """The declarations of the figures' colours."""
    series, steps = (DARK, DARK_RAMP) if dark else (SERIES, RAMP)
    named = {f"--c{index}": color for index, color in enumerate(series)}
    named |= {f"--r{index}": color for index, color in enumerate(steps)}
    return markupsafe.Markup(" ".join(f"{name}: {color};" for name, color in named.items()))


def inline(svg: str, name: str, title: str, description: str) -> markupsafe.Markup:
    """A drawn figure as a part of the page: its colours follow the page, and a title and a description name it.

    Args:
        svg: of `figures.svg`.
        name: of the figure, one on its page.
        title: what it shows, for who cannot see it.
        description: what can be seen there.
    """
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = svg.replace(INK, "currentColor")
    opening, _, rest = svg.partition(">")
    width, height = (re.search(rf' {side}="([\d.]+)pt"', opening)[1] for side in ("width", "height"))  # type: ignore[index]
    words = (
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {spaces} viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
    return markupsafe.Markup(head + words + rest)
