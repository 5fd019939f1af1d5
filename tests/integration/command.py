"""Runs the real command in its own process, as a user would."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
FAST = ("--config.teacher.steps=6", "--config.steps=6", "--config.checkpoint_every=2", "--config.log_every=1")
"""A complete run in seconds: `configs/digits.py` with few steps."""


def start(
    *arguments: str,
    devices: int = 1,
    prelude: str = "",
    cached: bool = True,
    module: str = "main",
    wrapper: tuple[str, ...] = (),
    **options,
) -> subprocess.Popen:
    """Starts `WRAPPER python -m lraqvit_jax.MODULE ARGUMENTS`, after the Python statements of `prelude`."""
    entry = {"main": "main.cli()", "bench": "from lraqvit_jax.bench import __main__ as bench\nmain.cli(bench.command)"}
    code = f"import sys; sys.argv[0] = 'lraqvit_jax.main'\n{prelude}\nfrom lraqvit_jax import main\n{entry[module]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if cached:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": os.environ["TESTS_COMPILED"],
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen([*wrapper, sys.executable, "-c", code, *arguments], env=environment, **pipes)


def run(*arguments: str, check: bool = False, **options) -> subprocess.CompletedProcess:
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    if check:
        assert process.returncode == 0, err[-3000:]
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def digits(workdir: pathlib.Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    return run("--config=configs/digits.py", f"--workdir={workdir}", *arguments, **options)


def rows(workdir: pathlib.Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((workdir / "results.json").read_text())["rows"]}


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder, by its path: to prove that nothing was touched."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
