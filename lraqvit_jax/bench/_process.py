"""The parent's end of `bench._worker`."""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from lraqvit_jax.base.startup import HUGE_PAGES


class RuntimeFailedError(Exception):
    """A runtime could not do something with a model, or died of it."""


class Process:
    """One model in one runtime.

    Args:
        runtime: name, with options.
        threads: that it may use.
    """

    def __init__(self, runtime: str, threads: int) -> None:
        command = [sys.executable, "-m", "lraqvit_jax.bench._worker", runtime, str(threads)]
        self._errors: Any = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        self._process = subprocess.Popen(command, env=_environment(threads), **pipes)

    def ask(self, **question: Any) -> dict[str, Any]:
        """What the worker answers; RuntimeFailedError where that is an error, or nothing."""
        stdin: Any = self._process.stdin
        stdout: Any = self._process.stdout
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise RuntimeFailedError(f"its process ended with {code}: {last_words(self._errors.read())}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeFailedError(answer["error"])
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def last_words(errors: str) -> str:
    """The last line of what a process wrote to stderr."""
    return (errors.strip().splitlines() or ["it said nothing"])[-1][:200]


def _environment(threads: int) -> dict[str, str]:
    """Without the huge pages that `main` starts itself over with: other programs run without them."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ | counts
    if environment.get("GLIBC_TUNABLES") == HUGE_PAGES:
        del environment["GLIBC_TUNABLES"]
    return environment
