"""Runs the real command in its own process, as a user would."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
FAST = ("--config.teacher.steps=6", "--config.steps=6", "--config.checkpoint_every=2", "--config.log_every=1")
"""A complete run in seconds: `configs/digits.py` with few steps."""


def compiled() -> dict[str, str]:
    """Environment of a process that uses the programs that the tests have compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ["TESTS_COMPILED"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(
    *arguments: str,
    devices: int = 1,
    prelude: str = "",
    module: str = "main",
    wrapper: tuple[str, ...] = (),
    **options,
) -> subprocess.Popen:
    """Starts `WRAPPER python -m lraqvit_jax.MODULE ARGUMENTS`, after the Python statements of `prelude`."""
    entry = {"main": "main.cli()", "bench": "from lraqvit_jax.bench import __main__ as bench\nmain.cli(bench.command)"}
    code = f"import sys; sys.argv[0] = 'lraqvit_jax.main'\n{prelude}\nfrom lraqvit_jax import main\n{entry[module]}"
    environment = (
        os.environ
        | compiled()
        | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen([*wrapper, sys.executable, "-c", code, *arguments], env=environment, **pipes)


def run(*arguments: str, check: bool = False, **options) -> subprocess.CompletedProcess:
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    if check:
        assert process.returncode == 0, err[-3000:]
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


FORKS = """
import importlib, json, os, sys
import grain, jax, orbax.checkpoint, sklearn.datasets, tensorflow_datasets
from lraqvit_jax import config, main
from lraqvit_jax.bench import __main__ as bench
for stage in config.STAGES:
    importlib.import_module("lraqvit_jax.stages." + stage)
for index, (module, devices, arguments) in enumerate(json.load(sys.stdin)):
    if not (child := os.fork()):
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(os.path.join(sys.argv[1], f"{index}.{name}"), os.O_CREAT | os.O_WRONLY), number)
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        sys.argv = ["lraqvit_jax." + module, *arguments]
        main.cli(*([bench.command] if module == "bench" else []))
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def forked(folder: pathlib.Path, cases: list[tuple[str, int, list[str]]]) -> list[subprocess.CompletedProcess]:
    """Runs commands one after another, each (module, devices, arguments), in forks of one process that has imported
    everything: for those that stop early, of which the imports are nearly all."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # Without it a command starts itself again.
    whole = subprocess.run(
        [sys.executable, "-c", FORKS, str(folder)],
        input=json.dumps(cases),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    said = [[(folder / f"{index}.{name}").read_text() for name in ("out", "err")] for index in range(len(cases))]
    codes = map(int, whole.stdout.split())
    return [
        subprocess.CompletedProcess(case, code, *texts) for case, code, texts in zip(cases, codes, said, strict=True)
    ]


def digits(workdir: pathlib.Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    return run("--config=configs/digits.py", f"--workdir={workdir}", *arguments, **options)


def rows(workdir: pathlib.Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((workdir / "results.json").read_text())["rows"]}


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder, by its path: to prove that nothing was touched."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
