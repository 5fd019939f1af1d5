"""Checkpoints, on orbax: the training state as it goes, and artefacts, the finished results of a stage.

An artefact is a directory with `params/` (an orbax tree) and `meta/metadata` (JSON: everything needed to rebuild the
model and to know where it came from). Orbax writes beside it and renames, so an artefact is whole or absent; that it
still is what was written, its fingerprint says when it is read.
"""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import shutil
import zlib
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lraqvit_jax import models
from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError, reason, short
from lraqvit_jax.data import preprocess
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import fingerprint, processes, sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.plan import records as plan
from lraqvit_jax.run import abandoned

META = {"name": str, "model": str, "num_classes": int, "class_names": list, "preprocess": dict, "plan": dict}
"""What every artefact says of itself, and more."""
MAX_CLASSES = 2**24
MEND = "delete the artefact and run the stage that makes it"
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
        params = jax.tree.map(_saved, params)
        meta = {**meta, "fingerprint": fingerprint.of(params)}
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(meta))
        checkpointer.save(directory.absolute(), items)


def _saved(leaf: Any) -> Any:
    """What orbax writes of an array: of one that every process has for itself, the first one's."""
    local = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return np.asarray(leaf) if local and jax.process_count() > 1 else leaf


def read_meta(directory: pathlib.Path) -> dict[str, Any]:
    """Reads what an artefact says of itself; UserError if there is none."""
    path = directory / "meta" / "metadata"
    if not path.is_file():
        raise UserError(f"There is no whole artefact in {directory}; run the stage that makes it.")
    meta = files.json_object(path, MEND)
    files.check(meta, META, str(path), MEND)
    if not files.whole(meta["num_classes"], 1, MAX_CLASSES):
        raise UserError(f"{path} has num_classes = {short(repr(meta['num_classes']))}, out of range; {MEND}.")
    plan.from_json(meta["plan"], str(path))
    preprocess.from_json(meta["preprocess"])
    return meta


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
        UserError: there is no artefact, or it is damaged.
    """
    directory = files.locate(str(directory)).absolute()
    meta = read_meta(directory)
    mesh = sharding.one_device() if mesh is None else mesh
    model = build(meta, dtype, arithmetic)
    abstract = sharding.abstract_params(model, meta["preprocess"]["size"], mesh)
    try:
        with abandoned.reads(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(directory, ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))
        _check(restored["params"], meta.get("fingerprint"))
    except Exception as error:  # A damaged file can go wrong in any way.
        raise UserError(
            f"The artefact {directory} is damaged ({reason(error)}); delete that folder, and run "
            "the stage that makes it again."
        ) from error
    return Artifact(model, restored["params"], preprocess.from_json(meta["preprocess"]), meta)


def _check(tree: Any, wanted: Any) -> None:
    """Raises ValueError where arrays are not those that were written; an older version wrote no fingerprint."""
    if wanted and (path := fingerprint.different(tree, wanted)):
        raise ValueError(f"{path} is not what was written")


def _sum(position: Any) -> int:
    return zlib.crc32(json.dumps(position, sort_keys=True).encode())


def host(params: Any) -> Any:
    """The parameters as NumPy arrays, whole on this host; every process must ask."""

    def whole(leaf: Any) -> np.ndarray:
        return np.asarray(leaf) if sharding.is_here(leaf) else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, params)


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
        position = batches.get_state()
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(position),
            fingerprint=ocp.args.JsonSave({**fingerprint.of(state), "data": _sum(position)}),
        )
        self._manager.save(step, args=items, force=True)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, abstract: Any, batches: grain.DatasetIterator) -> Any:
        """Restores the newest state that is whole and moves `batches` to its position; None if there is none.

        Warns on stderr of one that cannot be read, and puts it aside: what hinders may be the disk or the memory of the
        moment, and a checkpoint is not deleted for that.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return processes.together(functools.partial(self._read, step, abstract, batches))
            except UserError as error:
                self._put_aside(step, str(error))
        return None

    def _read(self, step: int, abstract: Any, batches: grain.DatasetIterator) -> Any:
        """One checkpoint; UserError with the reason where it cannot be read."""
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore(), fingerprint=ocp.args.JsonRestore()
        )
        try:
            with abandoned.reads():
                restored = self._manager.restore(step, args=items)
            wanted = dict(restored["fingerprint"])
            if wanted.pop("data") != _sum(restored["data"]):
                raise ValueError("the position of the data is not what was written")
            _check(restored["state"], wanted)
            batches.set_state(restored["data"])
        except Exception as error:  # A damaged file can go wrong in any way.
            raise UserError(reason(error)) from error
        return restored["state"]

    def _put_aside(self, step: int, why: str) -> None:
        """Renames a checkpoint to one that is not looked for."""
        folder = self.directory / str(step)
        aside = folder.with_name(f"damaged.{step}")

        def move() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            console.warn(f"the checkpoint {folder} is damaged ({why}); it is now {aside.name}.")

        processes.once(move)
        self._manager.reload()

    def close(self) -> None:
        """Waits until what was saved is whole on disk."""
        self._manager.close()

    def delete(self) -> None:
        """Forgets the run, once its artefact is written."""
        self.close()
        processes.once(lambda: shutil.rmtree(self.directory, ignore_errors=True))
