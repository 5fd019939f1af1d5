"""Checkpoints, on orbax: the training state as it goes, and artefacts, the finished results of a stage.

An artefact is a directory with `params/` (an orbax tree) and `meta/metadata` (JSON: everything needed to rebuild the
model and to know where it came from). Orbax writes beside it and renames, so an artefact is whole or absent.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import shutil
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from lraqvit_jax import models, plan, sharding
from lraqvit_jax.data import preprocess
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.errors import UserError
from lraqvit_jax.sharding import Mesh

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished model: what it is (`meta`), and its parameters.

    Attributes:
        model: Flax module; `model.apply({"params": params}, images)` gives logits.
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
    def plan(self) -> dict[str, plan.LayerPlan]:
        return plan.from_json(self.meta["plan"])

    @property
    def spec(self) -> models.ModelSpec:
        return models.spec(self.meta["model"], num_classes=self.meta["num_classes"], image_size=self.preprocess.size)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def save_artifact(directory: pathlib.Path, params: Any, meta: dict[str, Any]) -> None:
    """Writes an artefact, atomically. `meta["plan"]` holds the plan as JSON."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(meta))
        checkpointer.save(directory.absolute(), items)


def read_meta(directory: pathlib.Path) -> dict[str, Any]:
    """Reads what an artefact says of itself; UserError if there is none."""
    try:
        return json.loads((directory / "meta" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"There is no whole artefact in {directory} ({error}); run the stage that makes it.") from error


def build(meta: dict[str, Any], dtype: str = "float32", arithmetic: str = "integer") -> nn.Module:
    """The model that an artefact's meta describes."""
    return models.create(
        meta["model"],
        num_classes=meta["num_classes"],
        image_size=meta["preprocess"]["size"],
        plan=plan.from_json(meta["plan"]),
        dtype=dtype,
        arithmetic=arithmetic,
    )


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
        UserError: there is no artefact.
    """
    directory = pathlib.Path(directory).absolute()
    meta = read_meta(directory)
    mesh = sharding.one_device() if mesh is None else mesh
    model = build(meta, dtype, arithmetic)
    abstract = sharding.abstract_params(model, meta["preprocess"]["size"], mesh)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(directory, ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))
    return Artifact(model, restored["params"], preprocess.from_json(meta["preprocess"]), meta)


def host(params: Any) -> Any:
    """The parameters as NumPy arrays, whole on this host."""
    return jax.tree.map(np.asarray, params)


class TrainCheckpoints:
    """The last two states of one training run, each with the position of its input pipeline."""

    def __init__(self, directory: pathlib.Path, every: int) -> None:
        self.directory = directory.absolute()
        self._every = every
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def save(self, step: int, state: Any, batches: grain.DatasetIterator) -> None:
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(batches.get_state()))
        self._manager.save(step, args=items, force=True)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, abstract: Any, batches: grain.DatasetIterator) -> Any:
        """Restores the newest state and moves `batches` to its position; None if there is none."""
        step = self.latest()
        if step is None:
            return None
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        batches.set_state(restored["data"])
        return restored["state"]

    def close(self) -> None:
        """Waits until what was saved is whole on disk."""
        self._manager.close()

    def delete(self) -> None:
        """Forgets the run, once its artefact is written."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)
