"""SVDs of many layers: a thread for each, and a memory on disk for their results."""

import contextlib
import os
import pathlib
import uuid
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import joblib
import numpy as np
import threadpoolctl
from jaxtyping import Float
from joblib.memory import FileSystemStoreBackend

from lraqvit_jax.base import console, files
from lraqvit_jax.lowrank import svd

THREADS = 8
"""At most; a 1024 x 4096 layer takes some 400 MB while it is worked on."""
LIMIT = 4_000_000_000
"""Bytes that the memory takes at most."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Collection[Item], name: str = "layers") -> list[Result]:
    """`function` of every item, a thread for each, as many at a time as there are cores; results in order. The
    bar has that name.

    BLAS is held to one thread meanwhile. Its own threads do worse (on cores that others use too, they made an SVD 20 to
    50 times slower), and change the last bits: this way results are the same on any number of cores.
    """
    threads = min(THREADS, os.cpu_count() or 1)
    with threadpoolctl.threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        return list(console.progress(pool.map(function, items), name, "layer", len(items)))


class Memo:
    """`svd.spectrum` that reads what it computed before from disk, with the same bits.

    It is joblib's Memory: an entry is named by the hash of the kernel. A folder that cannot be written is no error.
    Threads and processes may share one.

    Attributes:
        folder: None remembers nothing.
    """

    def __init__(self, folder: pathlib.Path | None, limit: int = LIMIT) -> None:
        """`limit`: see `_Arrays`."""
        self.folder, self._remembered = folder, joblib.Memory(None).cache(_spectrum)
        with contextlib.suppress(OSError), warnings.catch_warnings(action="ignore"):
            memory = joblib.Memory(folder, backend=_Arrays.NAME, verbose=0, backend_options={"limit": limit})
            self._remembered = memory.cache(_spectrum)

    def __call__(self, kernel: Float[np.ndarray, "m n"]) -> svd.Spectrum:
        kernel = np.ascontiguousarray(kernel, np.float64)
        (m, n), k = kernel.shape, min(kernel.shape)
        try:
            spectrum = self._remembered(kernel, np.__version__)
            if spectrum is None or [part.shape for part in spectrum] != [(m, k), (k,), (k, n)]:
                spectrum, _ = self._remembered.call(kernel, np.__version__)
        except OSError:
            return svd.spectrum(kernel)
        return spectrum


def _spectrum(kernel: Float[np.ndarray, "m n"], numpy_version: str) -> svd.Spectrum:
    """What is remembered. Another NumPy may bring another LAPACK, and other last bits."""
    del numpy_version
    return svd.spectrum(kernel)


class _Arrays(FileSystemStoreBackend):
    """joblib's folders with .npz files in them. Three things are ours, where joblib's own store is weaker:

    * .npz files have checksums, and nothing runs when they are read; pickles have none, and take any flipped bit.
    * An entry is stamped when it is used; how a disk is mounted (noatime) does not change which one is the oldest.
    * What one memory is asked for beyond `limit` bytes is not kept, or else a model larger than that would always find
      what it needs last, and lose it first.
    """

    NAME = "lraqvit_jax"

    def configure(self, location: str, verbose: int = 1, backend_options: Any = None) -> None:
        self._limit, self._asked = backend_options["limit"], 0
        super().configure(location, verbose, backend_options)

    def load_item(
        self, call_id: Sequence[str], verbose: int = 1, timestamp: Any = None, metadata: Any = None
    ) -> svd.Spectrum | None:
        """None for a file that is damaged, or goes meanwhile."""
        path = self._path(call_id)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                spectrum = svd.Spectrum(**arrays)
        except Exception:  # A damaged file can go wrong in any way.
            return None
        self._asked += sum(part.nbytes for part in spectrum)
        with contextlib.suppress(OSError):
            os.utime(path)
        return spectrum

    def dump_item(self, call_id: Sequence[str], item: svd.Spectrum, verbose: int = 1) -> None:
        self._asked += sum(part.nbytes for part in item)
        if self._asked > self._limit:
            return
        path = self._path(call_id)
        unfinished = path.with_name(uuid.uuid4().hex)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("xb") as file:
                    np.savez(file, **item._asdict())
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
            self.enforce_store_limits(self._limit)

    def store_metadata(self, call_id: Sequence[str], metadata: Any) -> None:
        """Nobody asks for it."""

    def _path(self, call_id: Sequence[str]) -> pathlib.Path:
        return pathlib.Path(self.location, *call_id, "output.pkl")  # the name that joblib looks for, whatever is in it


joblib.register_store_backend(_Arrays.NAME, _Arrays)


def memo(cache_dir: str) -> Memo:
    """The memory that `config.cache_dir` names: "" is the user's cache folder, "none" has none."""
    if cache_dir == "none":
        return Memo(None)
    try:
        user = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lraqvit_jax"
        return Memo((files.locate(cache_dir) if cache_dir else user.expanduser()).absolute() / "svd")
    except RuntimeError:  # a user without a home
        return Memo(None)
