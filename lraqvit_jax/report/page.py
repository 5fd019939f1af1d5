"""Puts the page together from plain data."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe
import numpy as np
from jaxtyping import Float

from lraqvit_jax.plan import LinearInfo, Plan, layer_cost
from lraqvit_jax.report import figures


class FigureBlock(NamedTuple):
    """A figure with the words that go with it."""

    svg: markupsafe.Markup
    label: str
    caption: str


class Section(NamedTuple):
    """A titled part of the page; `figures` may be empty, and the text then says how to get them."""

    title: str
    text: str
    figures: Sequence[FigureBlock] = ()


def training(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Curves of every run, and the block errors of those that were distilled."""
    title = "Training"
    if not rows:
        return Section(title, "No training was logged. The stages teacher and distill write it.")
    caption = "Loss and accuracy, by run. A run's loss is its own objective, so compare its fall, not its height."
    drawn = [_figure(figures.curves(rows), "Training loss and accuracy over steps", caption)]
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows if "kd" in row)):
        caption = f"{run}: how far the output of each encoder block is from the teacher's (mean squared error)."
        drawn.append(
            _figure(figures.block_errors(rows, run, number), f"Distillation error of each block, {run}", caption)
        )
    text = "The teacher learns from labels. Each low-rank model starts from it and is trained as its row says."
    return Section(title, text, drawn)


def spectra(values: Mapping[str, Float[np.ndarray, " k"]], ranks: Mapping[str, int]) -> Section:
    """Singular values of the dense kernels with the kept rank."""
    title = "Singular values"
    if not ranks:
        return Section(title, "No layer is factorized in this plan.")
    if not values:
        return Section(title, "There is no dense model yet. The stage teacher makes it.")
    label = "Singular values of the dense kernels by kind of layer, kept part shaded"
    caption = "A line for each block, from the first (dark) to the last (light). Shaded: what the pair keeps."
    text = "A kernel whose singular values fall quickly loses little when only the first are kept."
    return Section(title, text, [_figure(figures.spectra(values, ranks), label, caption)])


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
    title = "Activations and quantization"
    if not errors:
        return Section(title, "Nothing is quantized yet. The stage quantize does it.")
    drawn = []
    keys = [key.removesuffix(":before") for key in surfaces if key.endswith(":before")]
    if keys:
        ratio = {end: {key: figures.loudest(surfaces[f"{key}:{end}"]) for key in keys} for end in ("before", "after")}
        worst = max(keys, key=lambda key: ratio["before"][key])
        pair = surfaces[f"{worst}:before"], surfaces[f"{worst}:after"]
        label = f"Activations of {worst} by token and channel, before and after scaling"
        caption = f"{name}: the product with the loudest channel, {worst}. Bright columns are outlier channels."
        drawn.append(_figure(figures.surfaces(*pair, worst), label, caption))
        caption = "Every product that is scaled. One int8 scale has to span the loudest channel."
        bars = figures.outliers(ratio["before"], ratio["after"])
        drawn.append(_figure(bars, "Largest over median channel before and after scaling", caption))
    caption = "Error of each product against float on the calibration images. ':x' is the first product of a layer."
    drawn.append(_figure(figures.errors(errors), "Relative error of every quantized product", caption))
    text = (
        "Channels and tokens with large outliers stretch the int8 grid and leave few steps for the rest. "
        "WADS divides the loud channels and multiplies the weights by the same vector."
    )
    return Section(title, text, drawn)


def _figure(svg: str, label: str, caption: str) -> FigureBlock:
    return FigureBlock(markupsafe.Markup(svg), label, caption)


def plan_rows(plan: Plan, layers: Sequence[LinearInfo]) -> list[dict[str, Any]]:
    """One row of the plan table for each layer."""
    return [
        {
            "path": info.path,
            "shape": f"{info.features_in} x {info.features_out}",
            "break_even": info.break_even,
            "params": layer_cost(info, plan[info.path]).params,
            "mflops": layer_cost(info, plan[info.path]).flops / 1e6,
            **{name: getattr(plan[info.path], name) for name in ("form", "rank", "bits", "granularity")},
        }
        for info in layers
    ]


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The run in one sentence: the smallest model that is nearest to the dense one."""
    dense = next((row for row in rows if row["name"] == "dense"), None)
    others = [row for row in rows if row["name"] != "dense"]
    if dense is None or not others:
        return "Only one model so far."
    best = max(others, key=lambda row: (round(dense["size_mb"] / row["size_mb"]), row["top1"]))
    return (
        f"{best['name']} takes {best['size_mb']:.3f} MB where the dense model takes {dense['size_mb']:.3f} MB "
        f"({dense['size_mb'] / best['size_mb']:.1f} times less) and answers {best['top1']:.2f} % of "
        f"{best['n_images']:,} images right where it answers {dense['top1']:.2f} %."
    )


def render(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    sections: Sequence[Section],
    plan: Sequence[Mapping[str, Any]],
    provenance: Sequence[tuple[str, str]],
) -> str:
    """Renders the page. Everything but the figures is escaped."""
    dense = next((row["top1"] for row in rows if row["name"] == "dense"), None)
    template = importlib.resources.files(__package__).joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title,
        summary=summary(rows),
        rows=[{**row, "diff": None if dense is None else row["top1"] - dense} for row in rows],
        one_image=f"{100 / max(1, rows[0]['n_images']):.2g}",
        sections=sections,
        plan=plan,
        provenance=provenance,
    )
