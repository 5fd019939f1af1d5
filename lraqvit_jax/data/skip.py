"""What `data.on_bad_image: skip` does: bad images are passed over, counted and listed.

Bad is what depends on the content alone, so every process and every call pass over the same images; a disk that does
not answer stops the run. In training the next readable image takes the place of a bad one, label and all. In evaluation
and calibration the row is masked out.
"""

import functools
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import matching, sources
from lraqvit_jax.data.images import BadImageError
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.sources import Example, Source

MANY = 20
"""Bad images from which on the run stops if they are more than half of those read."""
IN_A_ROW = 1000
"""Bad images one after another after which there is no next readable one."""
UNREAD, GOOD, BAD = 0, 1, 2


class Skipping:
    """A source that answers for its bad images. Thread-safe."""

    def __init__(self, source: Source, role: str, listing: pathlib.Path) -> None:
        """`listing` gets a line for each bad image: role, file, reason, with tabs between."""
        self.class_names, self.numbered = source.class_names, source.numbered
        self._source, self._role, self._listing = source, role, listing
        self._state, self._read, self._bad = np.full(len(source), UNREAD, np.uint8), 0, 0
        self._listed = set(listing.read_text(errors="replace").splitlines()) if listing.is_file() else set()
        self._lock = threading.Lock()

    @property
    def labels(self) -> Sequence[int] | None:
        return self._source.labels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """The image at `index`, or the next one that can be read."""
        for place in range(index, index + min(len(self), IN_A_ROW)):
            if example := self.at(place % len(self)):
                return example
        raise UserError(f"data.{self._role} has no image that can be read after number {index}; see {self._listing}.")

    def at(self, index: int) -> Example | None:
        """The image at `index`; None for a bad one.

        Raises:
            UserError: more than half of the images read so far are bad.
        """
        if self._state[index] == BAD:
            return None
        try:
            example = self._source[index]
        except BadImageError as error:
            self._note(index, BAD, error)
            return None
        if self._state[index] == UNREAD:
            self._note(index, GOOD)
        return example

    def _note(self, index: int, state: int, error: BadImageError | None = None) -> None:
        with self._lock:
            if self._state[index] != UNREAD:
                return
            self._state[index] = state
            self._read += 1
            if error is None:
                return
            self._bad += 1
            self._list(error)
            if self._bad >= MANY and 2 * self._bad > self._read:
                raise UserError(too_many(self._role, self._bad, self._read, self._listing)) from error

    def _list(self, error: BadImageError) -> None:
        line = f"data.{self._role}\t{short(f'{error.where}/{error.name}', 1000)}\t{short(error.reason)}"
        if self._bad == 1:
            console.warn(f"{error} Skipped, as further ones; {self._listing} lists them.")
        if line in self._listed:
            return
        self._listed.add(line)
        try:
            with self._listing.open("a") as file:
                file.write(line + "\n")
        except OSError as problem:
            raise UserError(
                f"{self._listing} cannot be written ({problem}); free the disk, or name another work directory."
            ) from problem

    @property
    def listing(self) -> pathlib.Path:
        return self._listing

    @property
    def role(self) -> str:
        return self._role


def too_many(role: str, bad: int, read: int, listing: pathlib.Path) -> str:
    """The sentence for data that is not worth going on with."""
    return (
        f"{bad:,} of {read:,} images read from data.{role} are bad, more than half; {listing} says why: mend the data, "
        "or name other data."
    )


@functools.lru_cache(maxsize=8)
def load(
    source: str, role: str, data_dir: str, listing: pathlib.Path, classes: Classes | None = None, needed: bool = True
) -> Skipping:
    """As `sources.load`, with the labels of a model's classes if they are given, and bad images passed over.

    There is one answer for each role of a work directory. `needed`: as for `matching.matched`.
    """
    opened = sources.load(source, role, data_dir)
    opened = matching.matched(opened, classes, f"data.{role}", needed) if classes else opened
    return Skipping(opened, role, listing)
