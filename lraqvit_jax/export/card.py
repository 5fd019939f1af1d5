"""A model card, as Hugging Face has them, beside the exported files: export/README.md."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lraqvit_jax.base.version import VERSION
from lraqvit_jax.weights import hub


def text(table: str, cards: Sequence[Mapping[str, Any]], taken: str, source: str, licence: str, images: str) -> str:
    """The text.

    Args:
        table: of the results.
        cards: NAME.json of every exported artefact.
        taken: which to take, in a sentence.
        source: where the weights came from; "" where they were trained.
        licence: of these, as their card has it; "" where it says none.
        images: what the accuracies were measured on.
    """
    front = {
        "license": licence or "unknown",
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "onnx", "quantized", "low-rank", "lraqvit_jax"],
    }
    if base := repository(source):
        front["base_model"] = base
    title = base or source.rpartition("/")[2].rpartition(":")[2] or "A model"
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in front.items()), "---", ""]
    lines += [f"# {title}, compressed", ""]
    lines += [f"Made by lraqvit_jax {VERSION}.", "", taken, "", "```text", table, "```", ""]
    lines += [f"Accuracies in percent, measured on images of {images.rpartition('/')[2]}.", "", "## Files", ""]
    for one in cards:
        lines += [f"* `{one['name']}.{suffix}`: {size / 1e6:.3f} MB{_own(one, suffix)}" for suffix, size in _files(one)]
    given = cards[0]["input"]
    lines += ["", "## Input", ""]
    lines += [
        f"`{given['name']}`, {given['dtype']} {given['shape']} ({given['layout']}, {given['colours']}): "
        f"{given['values']}, of an image that is prepared so: `{json.dumps(cards[0]['preprocess'])}`. Each file says "
        "the same of itself, and its classes."
    ]
    stated = licence or "not stated by the weights' card; ask where they came from"
    lines += ["", "## Licence", "", f"Of the weights that this was made from: {stated}.", ""]
    return "\n".join(lines)


def _files(one: Mapping[str, Any]) -> list[tuple[str, int]]:
    return sorted(one["bytes"].items())


def _own(one: Mapping[str, Any], suffix: str) -> str:
    top1 = one["top1"].get(suffix)
    return "" if top1 is None else f", right on {top1:.2f} % of {one['labelled_images']:,} images"


def repository(source: str) -> str:
    """The hub id in a source such as timm:timm/vit_tiny; "" where it is a file."""
    kind, _, name = source.partition(":")
    return name.partition("@")[0] if kind in ("timm", "huggingface") and hub.is_id(name) else ""
