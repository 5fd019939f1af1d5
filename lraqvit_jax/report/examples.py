"""Images that two models answer differently: which to show, and what is kept of them for a page without the data."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from lraqvit_jax.base import files
from lraqvit_jax.data.sources import Source
from lraqvit_jax.report import read, table
from lraqvit_jax.run.workspace import Workspace

MOST = 12
SIDE = 160
"""Pixels of a kept image's side at most."""
SMALL = 64
"""Images up to this side are kept as PNG, which loses nothing; larger ones as JPEG."""


def write(ws: Workspace) -> None:
    """Writes report/examples.json: the dense model and the pick of the table, and images that they answer differently.

    Images are cut as the models see them. Where one of the two has no answers, the file goes.
    """
    run, path = read.run(ws.directory), ws.directory / "report" / "examples.json"
    chosen = table.pick(run)
    if chosen is None or table.pair(run, chosen["name"]) is None:
        path.unlink(missing_ok=True)
        return
    dense, other = run.answers["dense"], run.answers[chosen["name"]]
    source = ws.source("eval")
    kept = [_kept(ws, source, dense, other, int(row)) for row in choose(dense, other)]
    content = {"schema": 1, "model": chosen["name"], "images": kept}
    files.write_atomically(path, json.dumps(content, indent=1) + "\n")


def choose(dense: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> Int[np.ndarray, " rows"]:
    """Rows of at most MOST images with different answers: in turn one that the dense model alone has right, one that
    the other alone has right, and one that none has, each time the one where both are surest."""
    differ = np.flatnonzero(dense["answer"] != other["answer"])
    right = [group["answer"][differ] == group["label"][differ] for group in (dense, other)]
    kind = np.where(right[0], 0, np.where(right[1], 1, 2))
    sure = (dense["probability"] * other["probability"])[differ]
    turn = np.zeros(len(differ), int)
    for group in range(3):
        of_kind = np.flatnonzero(kind == group)
        turn[of_kind[np.argsort(-sure[of_kind], kind="stable")]] = np.arange(len(of_kind))
    return differ[np.lexsort((kind, turn))][:MOST]


def _kept(ws: Workspace, source: Source, dense: Any, other: Any, row: int) -> dict[str, Any]:
    index = int(dense["image"][row])
    image = ws.preprocess.geometry(source[index]["image"])
    answers = {
        name: {"answer": int(of_model["answer"][row]), "probability": round(float(of_model["probability"][row]), 4)}
        for name, of_model in (("dense", dense), ("other", other))
    }
    return {"index": index, "label": int(dense["label"][row]), **answers, "src": data_uri(image)}


def data_uri(image: Image.Image) -> str:
    """The image as an address that holds all of it, no larger than SIDE."""
    content, kind = io.BytesIO(), "png" if max(image.size) <= SMALL else "jpeg"
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.save(content, kind, **({"quality": 85, "optimize": True} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
