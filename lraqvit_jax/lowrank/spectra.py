"""SVDs of many layers: a thread for each, and a memory on disk for their results."""

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import threadpoolctl
from jaxtyping import Float

from lraqvit_jax.base import console
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

    A file is named by the hash of the kernel, appears whole, and is computed again where it is damaged. A folder that
    cannot be written is no error. Threads and processes may share one.

    Attributes:
        folder: None remembers nothing.
        limit: bytes; above it, the files that were not used for longest go. What one memory is asked for beyond that is
            not kept, or else a model larger than the limit would always find what it needs last, and lose it first.
    """

    def __init__(self, folder: pathlib.Path | None, limit: int = LIMIT) -> None:
        self.folder, self.limit, self._asked = folder, limit, 0

    def __call__(self, kernel: Float[np.ndarray, "m n"]) -> svd.Spectrum:
        kernel = np.ascontiguousarray(kernel, np.float64)
        if self.folder is None:
            return svd.spectrum(kernel)
        # Another NumPy may bring another LAPACK, and other last bits.
        key = hashlib.sha256(f"numpy {np.__version__} {kernel.shape}".encode())
        key.update(kernel.data)
        path = self.folder / f"{key.hexdigest()}.npz"
        known = _read(path, kernel.shape)
        found = known or svd.spectrum(kernel)
        self._asked += sum(part.nbytes for part in found)
        if known is None and self._asked <= self.limit:
            with contextlib.suppress(OSError):
                self._write(path, found)
        return found

    def _write(self, path: pathlib.Path, found: svd.Spectrum) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as own:
            whole = pathlib.Path(own) / path.name
            np.savez(whole, **found._asdict())
            whole.replace(path)
        self._trim(path.parent)

    def _trim(self, folder: pathlib.Path) -> None:
        used = [(file.stat().st_mtime, file.stat().st_size, file) for file in folder.rglob("*") if file.is_file()]
        total = sum(size for _, size, _ in used)
        for _, size, file in sorted(used):
            if total <= self.limit:
                break
            file.unlink(missing_ok=True)
            total -= size


def memo(cache_dir: str) -> Memo:
    """The memory that `config.cache_dir` names: "" is the user's cache folder, "none" has none."""
    if cache_dir == "none":
        return Memo(None)
    try:
        user = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lraqvit_jax"
        return Memo((pathlib.Path(cache_dir) if cache_dir else user).expanduser().absolute() / "svd")
    except RuntimeError:  # a user without a home
        return Memo(None)


def _read(path: pathlib.Path, shape: tuple[int, ...]) -> svd.Spectrum | None:
    """What the file holds; None if it is not there, or damaged (the parts of an .npz have checksums)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            stored = svd.Spectrum(**arrays)
    except Exception:  # A damaged file can go wrong in any way.
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    (m, n), k = shape, min(shape)
    return stored if [part.shape for part in stored] == [(m, k), (k,), (k, n)] else None
