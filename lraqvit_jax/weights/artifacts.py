"""Artefacts, on orbax: models that a stage has finished.

An artefact is a directory with `params/` (an orbax tree) and `meta/` (JSON: everything needed to rebuild the model and
to know where it came from). Orbax writes beside it and renames, so an artefact is whole or absent; that it still is
what was written, its fingerprint says when it is read.
"""

import dataclasses
import importlib.metadata
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from lraqvit_jax import models
from lraqvit_jax.base import abandoned, files, links
from lraqvit_jax.base.errors import UserError, reason, short
from lraqvit_jax.data import preprocess
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import fingerprint, sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.plan.files import from_json
from lraqvit_jax.plan.records import LayerPlan, resolved

META = {"name": str, "model": str, "num_classes": int, "class_names": list, "preprocess": dict, "plan": dict}
"""What every artefact says of itself, and more."""
META_FILES = ("data.json", "metadata")
"""Names of the file in `meta/`: as orbax's V1 API gives it, and as its V0 API did, which wrote older artefacts."""
MAX_CLASSES = 2**24
MEND = "delete the artefact and run the stage that makes it"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished model: what it is (`meta`), and its parameters.

    Attributes:
        model: Flax module; `model.apply({"params": params}, images)` gives logits, or, without classes, features.
        params: plain nested dict of arrays.
        preprocess: of its images.
        meta: name, model, plan, preprocess, class_names, config, parent, versions, notes.
    """

    model: nn.Module
    params: Any
    preprocess: Preprocess
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        return self.meta["name"]

    @property
    def plan(self) -> dict[str, LayerPlan]:
        return from_json(self.meta["plan"])

    @property
    def spec(self) -> models.ModelSpec:
        """Of the model as the plan leaves it."""
        dense = models.spec(self.meta["model"], num_classes=self.meta["num_classes"], image_size=self.preprocess.size)
        return dataclasses.replace(dense, layers=tuple(resolved(dense.layers, self.plan)))


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def save_artifact(directory: pathlib.Path, params: Any, meta: dict[str, Any]) -> None:
    """Writes an artefact, atomically. `meta["plan"]` holds the plan as JSON."""
    params = jax.tree.map(_saved, params)
    meta = {**meta, "fingerprint": fingerprint.of(params)}
    neutral = directory.with_name(links.PATTERN.sub("_", directory.name))
    with json_items("meta"):
        ocp.save_checkpointables(links.plain(neutral), {"params": params, "meta": meta})
    if neutral != directory:
        neutral.rename(directory)


def json_items(*names: str) -> ocp.Context:
    """Settings of orbax in which the items of these names are JSON: a dict would be taken for a tree of arrays."""
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry()
    for name in names:
        context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    return context


def _saved(leaf: Any) -> Any:
    """What orbax writes of an array: of one that every process has for itself, the first one's."""
    local = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return np.asarray(leaf) if local and jax.process_count() > 1 else leaf


def exists(directory: pathlib.Path) -> bool:
    """Whether there is a whole artefact."""
    return meta_file(directory) is not None


def meta_file(directory: pathlib.Path) -> pathlib.Path | None:
    """The file in which an artefact says what it is; None where there is no artefact."""
    return next((path for name in META_FILES if (path := directory / "meta" / name).is_file()), None)


def names(directory: pathlib.Path) -> list[str]:
    """The artefacts in a directory, such as WORKDIR/checkpoints, sorted."""
    return sorted(path.name for path in directory.glob("*") if exists(path))


def read_meta(directory: pathlib.Path) -> dict[str, Any]:
    """Reads what an artefact says of itself; UserError if there is none."""
    path = meta_file(directory)
    if path is None:
        raise UserError(f"There is no whole artefact in {directory}; run the stage that makes it.")
    meta = files.json_object(path, MEND)
    files.check(meta, META, str(path), MEND)
    if not files.whole(meta["num_classes"], 0, MAX_CLASSES):
        raise UserError(f"{path} has num_classes = {short(repr(meta['num_classes']))}, out of range; {MEND}.")
    from_json(meta["plan"], str(path))
    preprocess.from_json(meta["preprocess"])
    return meta


def build(meta: dict[str, Any], dtype: str = "float32", arithmetic: str = "integer") -> nn.Module:
    """The model that an artefact's meta describes."""
    return models.create(
        meta["model"],
        num_classes=meta["num_classes"],
        image_size=meta["preprocess"]["size"],
        plan=from_json(meta["plan"]),
        dtype=dtype,
        arithmetic=arithmetic,
    )


def abstract(meta: dict[str, Any]) -> Any:
    """Shapes and types of the parameters that an artefact's meta describes."""
    return sharding.abstract_params(build(meta), meta["preprocess"]["size"], sharding.one_device())


def load_artifact(
    directory: str | pathlib.Path, mesh: Mesh | None = None, dtype: str = "float32", arithmetic: str = "integer"
) -> Artifact:
    """Restores an artefact onto a mesh (default: one device), whatever mesh wrote it.

    Args:
        directory: `WORKDIR/checkpoints/NAME`.
        mesh: where the parameters go.
        dtype: of the model's float products.
        arithmetic: of its quantized layers, "integer" or "fake".

    Raises:
        UserError: there is no artefact, or it is damaged.
    """
    directory = files.locate(str(directory)).absolute()
    meta = read_meta(directory)
    mesh = sharding.one_device() if mesh is None else mesh
    model = build(meta, dtype, arithmetic)
    abstract = sharding.abstract_params(model, meta["preprocess"]["size"], mesh)
    try:
        with abandoned.reads():
            params = ocp.load(links.plain(directory), abstract, checkpointable_name="params")
        check(params, meta.get("fingerprint"))
    except Exception as error:  # A damaged file can go wrong in any way.
        raise UserError(
            f"The artefact {directory} is damaged ({reason(error)}); delete that folder, and run "
            "the stage that makes it again."
        ) from error
    return Artifact(model, params, preprocess.from_json(meta["preprocess"]), meta)


def check(tree: Any, written: Any) -> None:
    """Raises ValueError where arrays are not those whose fingerprint was written; an older version wrote none."""
    if written and (path := fingerprint.different(tree, written)):
        raise ValueError(f"{path} is not what was written")


def host(params: Any) -> Any:
    """The parameters as NumPy arrays, whole on this host; every process must ask."""

    def whole(leaf: Any) -> np.ndarray:
        return np.asarray(leaf) if sharding.is_local(leaf) else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, params)
