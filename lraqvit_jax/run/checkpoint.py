"""Checkpoints of a training run, on orbax: its state as it goes, with the position of its input."""

import functools
import json
import pathlib
import shutil
import zlib
from typing import Any

import grain
import orbax.checkpoint as ocp

from lraqvit_jax.base import abandoned, console
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
            artifacts.check(restored["state"], wanted)
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
