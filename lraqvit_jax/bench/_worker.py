"""A process that holds one model in one runtime, and does as its parent says, a line of JSON each way.

    {"load": path, "job": {...}}   loads it: {"load_s", "logits" of the first image}, and megabytes: `baseline_mb` of
                                   the runtime alone, `peak_mb` the most so far, `running_mb` the most in calls,
                                   `resident_mb` now
    {}                             calls it: {"wall_ms", "cpu_ms"}, processor time of all threads
    {"images": path, "count": n}   {"answers"}: the class with the largest logit for each of the first n images of an
                                   .npy file, one at a time

Whatever fails is answered with {"error"}. The process is held to as many cores as it has threads.
"""

import contextlib
import ctypes
import importlib
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lraqvit_jax import runtimes

BRIEF = 100
"""Milliseconds. A model that takes less is called once more before each call that counts: the models that had their
turn since have thrown it out of the caches, where a small one stays while it is used."""
STATUS = pathlib.Path("/proc/self/status")


def main(name: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a runtime prints is no answer.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    importlib.import_module(runtimes.imported(name))
    worker = Worker(name)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            does = worker.load if "load" in question else worker.answer if question else worker.call
            answer = does(**question)
        except Exception as error:  # Whatever a runtime raises is what is wrong with this model.
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The model, once it is loaded."""

    def __init__(self, name: str) -> None:
        self._name, self._baseline = name, memory("VmRSS")
        self._model: Callable[[Any], Any] = lambda images: images
        self._images: Any = None
        self._brief = False

    def load(self, load: str, job: dict[str, Any]) -> dict[str, Any]:
        job |= {"options": runtimes.options(self._name)}
        started = time.perf_counter()
        self._model = runtimes.module(self._name).load(pathlib.Path(load), runtimes.Job(**job))
        seconds, loading = time.perf_counter() - started, memory("VmHWM")
        with contextlib.suppress(OSError):  # From here on Linux counts the most memory anew.
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        sides = (job["batch"], job["size"], job["size"], 3)
        self._images = np.random.default_rng(0).standard_normal(sides, np.float32)
        logits = np.asarray(self._model(self._images))[0].tolist()
        self._brief = self.call()["cpu_ms"] < BRIEF
        running = memory("VmHWM")
        resident = {"load_s": seconds, "logits": logits, "baseline_mb": self._baseline, "resident_mb": memory("VmRSS")}
        give_back()  # Other models wait in their processes for their turn.
        return resident | {"peak_mb": max(loading, running), "running_mb": running}

    def answer(self, images: str, count: int) -> dict[str, Any]:
        there = np.load(images, mmap_mode="r")[:count]
        return {
            "answers": [int(np.argmax(np.asarray(self._model(there[row : row + 1].copy()))[0])) for row in range(count)]
        }

    def call(self) -> dict[str, Any]:
        if self._brief:
            self._model(self._images)
        wall, cpu = time.perf_counter(), time.process_time()
        self._model(self._images)
        return {"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (time.process_time() - cpu)}


def memory(field: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM the most so far; both are the most where there is no /proc."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def give_back() -> None:
    """Returns to the system what is free; where glibc is not, nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
