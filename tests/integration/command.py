"""Runs the commands as a user would: each in a process of its own, which is a fork of one that has imported everything.

`run` and `fork` are for nearly all tests; `start` and `real` start Python anew, for those about the start itself.
"""

import atexit
import functools
import importlib.metadata
import json
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAST = ("--config.teacher.steps=6", "--config.steps=6", "--config.checkpoint_every=2", "--config.log_every=1")
"""A complete run in seconds: `configs/digits.py` with few steps."""
PATIENCE = 300
"""Seconds after which a command has hung."""


def quick() -> str:
    """XLA's flags for programs that are compiled once and run for a moment: a third of the CPU time, slower programs.

    The README's command is tested without them, and everything is by `TESTS_XLA_FLAGS= bash launch/test.sh`.
    """
    flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # A later one has no other emitters.
        flags += " --xla_cpu_use_fusion_emitters=false"
    return os.environ.get("TESTS_XLA_FLAGS", flags)


def xla_flags(devices: int, others: str | None = None) -> str:
    """Of a process with so many CPU devices; the others are `quick()` unless given."""
    return f"--xla_force_host_platform_device_count={devices} {quick() if others is None else others}".strip()


def compiled() -> dict[str, str]:
    """Environment of a process that uses the programs that the tests have compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ["TESTS_COMPILED"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def environment(devices: int = 1) -> dict[str, str]:
    """Of a command on so many CPU devices: no thread before JAX's own, so that it can be forked, and huge pages, which
    without this `main` would start itself again for."""
    return (
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        | os.environ
        | compiled()
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": xla_flags(devices),
            "OPENBLAS_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }
    )


def _child(
    name: str, arguments: tuple[str, ...], prelude: str, variables: Mapping[str, str], cwd: str, folder: pathlib.Path
) -> None:
    """What a fork does: becomes `python -m NAME ARGUMENTS`, and ends as Python does, with what waits for its exit."""
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / stream, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    if "tests.integration.preloaded" not in sys.modules:
        raise ImportError("the process whose fork this is has not imported everything; preloaded.py says why not")
    os.environ |= variables
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    sys.argv = [name, *arguments]
    sys.modules.pop(name, None)
    try:
        exec(prelude, {})
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


@functools.cache
def _server() -> multiprocessing.context.BaseContext:
    """Starts the process whose forks the commands are; it ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


class Running:
    """A command that was started by `fork`."""

    def __init__(self, process: multiprocessing.context.ForkServerProcess, folder: tempfile.TemporaryDirectory) -> None:
        self.process, self.folder = process, folder

    def wait(self) -> subprocess.CompletedProcess:
        """How it ended and what it printed; a command that hangs is killed."""
        self.process.join(PATIENCE)
        if hangs := self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        out, err = ((pathlib.Path(self.folder.name) / stream).read_text() for stream in ("out", "err"))
        self.folder.cleanup()
        assert not hangs, f"it ran for {PATIENCE} s: {err[-3000:]}"
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, out, err)


def fork(
    *arguments: str,
    devices: int = 1,
    prelude: str = "",
    module: str = "main",
    cwd: pathlib.Path = ROOT,
    variables: Mapping[str, str] | None = None,
) -> Running:
    """Starts `python -m lraqvit_jax.MODULE ARGUMENTS`, after the Python statements of `prelude`, and does not wait."""
    folder = tempfile.TemporaryDirectory()
    name, variables = f"lraqvit_jax.{module}", environment(devices) | dict(variables or {})
    for stream in ("out", "err"):
        (pathlib.Path(folder.name) / stream).touch()
    words = tuple(map(str, arguments))
    inputs = (name, words, prelude, variables, str(cwd), pathlib.Path(folder.name))
    process = _server().Process(target=_child, args=inputs, name=" ".join([name, *words]), daemon=True)
    process.start()
    return Running(process, folder)


def run(*arguments: str, check: bool = False, **options) -> subprocess.CompletedProcess:
    """Runs a command to its end; see `fork`."""
    return checked(fork(*arguments, **options).wait(), check)


def start(
    *arguments: str, devices: int = 1, prelude: str = "", module: str = "main", wrapper: tuple[str, ...] = (), **options
) -> subprocess.Popen:
    """Starts `WRAPPER python -m lraqvit_jax.MODULE ARGUMENTS` from nothing."""
    code = f"{prelude}\nimport runpy\nrunpy.run_module('lraqvit_jax.{module}', run_name='__main__', alter_sys=True)"
    words = ["-c", code] if prelude else ["-m", f"lraqvit_jax.{module}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen([*wrapper, sys.executable, *words, *map(str, arguments)], env=environment(devices), **pipes)


def real(*arguments: str, check: bool = False, **options) -> subprocess.CompletedProcess:
    """Runs a command from nothing to its end; see `start`."""
    return checked(ended(start(*arguments, **options)), check)


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """What a process of `start` printed, and how it ended; one that hangs is killed."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def checked(done: subprocess.CompletedProcess, check: bool) -> subprocess.CompletedProcess:
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def digits(workdir: pathlib.Path, *arguments: str, how=run, **options) -> subprocess.CompletedProcess:
    """Runs `main` with `configs/digits.py` by `run`, `real`, or another of the above."""
    return how("--config=configs/digits.py", f"--workdir={workdir}", *arguments, **options)


def rows(workdir: pathlib.Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((workdir / "results.json").read_text())["rows"]}


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder, by its path: to prove that nothing was touched."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
