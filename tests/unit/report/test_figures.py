"""What is drawn, and in which colours."""

import collections
import re

import numpy as np
import pytest

from lraqvit_jax.report import activations, panels, read, spectra, theme, training
from tests.unit.report.made import Page


@pytest.mark.parametrize("loud", [0.0, 5.0])
def test_silent_channels_and_kernels(loud):
    """A channel that is always zero, and a kernel of zeros, are drawn like any other."""
    values = np.zeros((3, 4))
    values[0, 0] = loud
    made = activations.activations({"a:x:before": values, "a:x:after": values}, {"q": {"blocks_0/a:x": 0.0}}, "q")
    assert [len(grid.figures) for grid in made.grids] == [2, 0, 1]
    assert spectra.spectra({"a/qkv": np.zeros(4)}, {"a/qkv": 2}).grids


def test_int8_models_may_differ_in_their_products():
    (grid,) = activations.activations({}, {"a": {"one:x": 0.1}, "b": {"two:x": 0.1, "one:x": 0.2}}, "").grids
    assert grid.columns[1:] == ("a", "b")
    assert [tuple(row) for row in grid.rows] == [("one", "10.00", "20.00"), ("two", "", "10.00")]


def test_ids_are_unique_with_two_distilled_runs(whole):
    rows = [{"run": run, "step": 1, "loss": 1.0, "accuracy": 0.5, "kd": 0.1, "kd_0": 0.1} for run in ("a", "b")]
    grids = training.training(rows).grids
    for text in (whole[1], "".join(figure.svg for grid in grids for figure in grid.figures)):
        found = Page(text)
        ids = collections.Counter(found.attributes("id"))
        assert max(ids.values()) == 1
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_tick_labels_are_numbers(whole):
    """No mathematical markup shows on an axis."""
    assert not [word for word in Page(whole[1]).text["text"] if "$" in word or "mathdefault" in word]


def test_colours_of_figures_are_those_of_the_page(whole):
    """What is drawn in a colour of its own would not follow into the dark."""
    pictures = re.findall(r'<svg[^>]*role="img".*?</svg>', whole[1], re.DOTALL)
    styles = [style for picture in pictures for style in re.findall(r'style="([^"]*)"', picture)]
    assert not [style for style in styles if re.search("#[0-9a-f]{6}", style)]
    assert any("var(--c0)" in style for style in styles) and any("var(--r0)" in style for style in styles)


def luminance(color):
    """WCAG 2's relative luminance of #rrggbb."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return np.dot(
        [0.2126, 0.7152, 0.0722], [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    )


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_and_lines_can_be_told_from_their_ground(whole, mode):
    """WCAG AA: 4.5 for text, 3 for lines."""
    blocks = re.findall(r":root {(.*?)}", whole[1], re.DOTALL)
    colors = dict(re.findall(r"(--\w+): (#[0-9a-f]{6});", blocks[mode]))
    for ground in ("--card", "--paper", "--mark"):
        for ink in ("--ink", "--dim", "--accent", "--good", "--bad"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    lines = [name for name in colors if re.fullmatch(r"--[cr]\d", name)]
    assert len(lines) == len(theme.VARIABLES) - 1
    assert all(contrast(colors[name], colors["--card"]) >= 3 for name in lines)


def test_blocks_of_a_panel_are_in_their_order():
    """Whatever the order of the products; 10 comes after 2."""
    errors = {f"blocks_{block}/attn/qkv:x": 0.01 for block in (10, 0, 2)} | {"blocks_1/mlp/fc1:x": 0.01}
    (grid,) = activations.activations({}, {"int8": errors}, "").grids
    for figure in grid.figures:
        found = Page(figure.svg).text["text"]
        assert [word for word in found if word in ("0", "1", "2", "10")][:4] == ["0", "1", "2", "10"]


def test_numbers_of_points_keep_apart(rng):
    for count in (1, 5, 40):
        heights = np.sort(rng.uniform(0, 200, count))[::-1]
        moved = panels._spread(list(heights), 200, 0)
        assert np.all(-np.diff(moved) >= min(panels.GAP, 200 / max(1, count - 1)) - 1e-9)
        assert min(moved) >= -1e-9 and max(moved) <= 200 + 1e-9
    assert panels._spread([100.0, 100.0], 200, 0) == [100 + panels.GAP / 2, 100 - panels.GAP / 2]
    assert panels._spread([100.0, 50.0], 200, 0) == [100.0, 50.0]


@pytest.mark.parametrize("ends", [(0.4, 3.5), (1.9, 2.9), (1, 900), (0.012, 0.03), (10, 16)])
def test_an_axis_of_costs_has_numbers(ends):
    ticks = panels._round_ticks(*ends)
    assert panels.ENOUGH <= len(ticks) <= 9
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)


def test_layers_have_a_place():
    assert read.place("blocks_11/mlp/fc1") == ("11", "mlp/fc1")
    assert read.place("stages_1/blocks_0/attn/qkv") == ("1.0", "attn/qkv")
    assert read.place("stages_1/downsample/reduction") == ("", "stages_1/downsample/reduction")
