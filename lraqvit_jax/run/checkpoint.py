"""Checkpoints of a training run, on orbax: its state as it goes, with the position of its input."""

import functools
import json
import pathlib
import shutil
import zlib
from typing import Any

import grain
from orbax.checkpoint import v1 as ocp

from lraqvit_jax.base import abandoned, console, links
from lraqvit_jax.base.errors import UserError, reason
from lraqvit_jax.devices import fingerprint, processes
from lraqvit_jax.weights import artifacts


def _sum(position: Any) -> int:
    return zlib.crc32(json.dumps(position, sort_keys=True).encode())


class TrainCheckpoints:
    """The last two states of one training run, each with the position of its input pipeline."""

    def __init__(self, directory: pathlib.Path, every: int) -> None:
        self.directory = directory.absolute()
        self._every = every
        self._saving: ocp.AsyncResponse[bool] | None = None
        self._checkpointer = ocp.training.Checkpointer(
            links.plain(self.directory),
            context=artifacts.json_items("data", "fingerprint"),
            preservation_policy=ocp.training.preservation_policies.LatestN(2),
            cleanup_tmp_directories=True,
        )

    def due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def save(self, step: int, state: Any, batches: grain.DatasetIterator) -> None:
        """Copies the state and writes it while training goes on; raises what went wrong with the one before."""
        self._wait()
        position = batches.get_state()
        items = {
            "state": state,
            "data": position,
            "fingerprint": {**fingerprint.of(state), "data": _sum(position)},
        }
        self._saving = self._checkpointer.save_checkpointables_async(step, items, force=True)

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def latest(self) -> int | None:
        """The newest step; None if there is none."""
        newest = self._checkpointer.latest
        return newest.step if newest else None

    def restore(self, abstract: Any, batches: grain.DatasetIterator) -> Any:
        """Restores the newest state that is whole and moves `batches` to its position; None if there is none.

        Warns on stderr of one that cannot be read, and puts it aside: what hinders may be the disk or the memory of the
        moment, and a checkpoint is not deleted for that.
        """
        for checkpoint in reversed(self._checkpointer.checkpoints):
            try:
                return processes.together(functools.partial(self._read, checkpoint.step, abstract, batches))
            except UserError as error:
                self._put_aside(checkpoint.step, str(error))
        return None

    def _read(self, step: int, abstract: Any, batches: grain.DatasetIterator) -> Any:
        """One checkpoint; UserError with the reason where it cannot be read."""
        try:
            position, written = self._item(step, "data"), dict(self._item(step, "fingerprint"))
            if written.pop("data") != _sum(position):
                raise ValueError("the position of the data is not what was written")
            state = self._item(step, "state", abstract)
            artifacts.check(state, written)
            batches.set_state(position)
        except Exception as error:  # A damaged file can go wrong in any way.
            raise UserError(reason(error)) from error
        return state

    def _item(self, step: int, name: str, abstract: Any = None) -> Any:
        """One item of a checkpoint. Of several, orbax would not await those behind one that cannot be read."""
        with abandoned.reads():
            return self._checkpointer.load_checkpointables(step, {name: abstract})[name]

    def _put_aside(self, step: int, why: str) -> None:
        """Renames a checkpoint to one that is not looked for."""
        folder = self.directory / str(step)
        aside = folder.with_name(f"damaged.{step}")

        def move() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            console.warn(f"the checkpoint {folder} is damaged ({why}); it is now {aside.name}.")

        processes.once(move)
        self._checkpointer.reload()

    def close(self) -> None:
        """Waits until what was saved is whole on disk."""
        try:
            self._wait()
        finally:
            self._checkpointer.close()

    def delete(self) -> None:
        """Forgets the run, once its artefact is written."""
        self.close()
        processes.once(lambda: shutil.rmtree(self.directory, ignore_errors=True))
