"""Killed by SIGKILL at awkward moments and started again, a run ends as if nothing had happened, bit for bit."""

import json
import pathlib
import signal

import numpy as np
import pytest

from lraqvit_jax.run import metrics
from lraqvit_jax.weights import artifacts
from tests.integration import command

AFTER_STEP = """
import os
from lraqvit_jax.run import metrics
write = metrics.MetricsLog.write
def deadly(self, step, values):
    write(self, step, values)
    if (self._run, step) == ({run!r}, {step}):
        os.kill(os.getpid(), 9)
metrics.MetricsLog.write = deadly
"""
WHILE_SAVING = """
import os
from lraqvit_jax.run.checkpoint import TrainCheckpoints
save = TrainCheckpoints.save
def deadly(self, step, state, batches):
    save(self, step, state, batches)
    if step == {step}:
        os.kill(os.getpid(), 9)
TrainCheckpoints.save = deadly
"""
BEFORE_ROW = """
import os
from lraqvit_jax.run import results
add = results.add
def deadly(directory, model, row, order):
    if row["name"] == {name!r}:
        os.kill(os.getpid(), 9)
    add(directory, model, row, order)
results.add = deadly
"""
KILLS = [
    AFTER_STEP.format(run="teacher", step=1),  # before any checkpoint
    WHILE_SAVING.format(step=4),  # orbax writes in the background
    AFTER_STEP.format(run="teacher", step=6),  # the last step, before its checkpoint
    BEFORE_ROW.format(name="dense"),  # artefact written, row not
    AFTER_STEP.format(run="rb_lra_kd", step=5),  # one step after a checkpoint
    BEFORE_ROW.format(name="int8_wads"),
]
FROM_NOTHING = 4
"""The kill of a process that is no fork: it restores, decomposes and trains under another seed of Python's hashes."""


def parameters(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of every artefact."""
    arrays = {}
    for folder in sorted((workdir / "checkpoints").iterdir()):
        params = artifacts.host(artifacts.load_artifact(folder).params)
        arrays |= {f"{folder.name}/{path}": leaf for path, leaf in flatten(params).items()}
    return arrays


def flatten(tree: dict, where: str = "") -> dict[str, np.ndarray]:
    found = {}
    for name, value in tree.items():
        found |= flatten(value, f"{where}{name}/") if isinstance(value, dict) else {f"{where}{name}": value}
    return found


def without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("quiet")
    command.digits(workdir, *command.FAST, check=True)
    return workdir


def test_killed_again_and_again_ends_bit_identical(tmp_path, quiet):
    killed = tmp_path / "killed"
    for index, prelude in enumerate(KILLS):
        how = command.real if index == FROM_NOTHING else command.run
        assert command.digits(killed, *command.FAST, prelude=prelude, how=how).returncode == -signal.SIGKILL
    command.digits(killed, *command.FAST, check=True)

    want, got = parameters(quiet), parameters(killed)
    assert sorted(got) == sorted(want)
    different = [name for name in want if not np.array_equal(got[name], want[name])]
    assert not different
    rows = [
        {name: without(row, "seconds", "checksum") for name, row in command.rows(path).items()}
        for path in (quiet, killed)
    ]
    assert rows[0] == rows[1]
    curves = [
        [without(row, "images_per_second") for row in metrics.read(path / "metrics.jsonl")] for path in (quiet, killed)
    ]
    assert curves[0] == curves[1]


def test_a_finished_run_computes_nothing_again(quiet):
    before = command.files(quiet)
    again = command.digits(quiet, *command.FAST, check=True)
    assert command.files(quiet) == before
    assert "int8_wads" in again.stdout


@pytest.mark.slow
def test_stages_one_at_a_time_equal_one_run(tmp_path, quiet):
    parts = tmp_path / "parts"
    for stage in ("teacher", "factorize", "distill,merge", "quantize", "evaluate", "export", "report"):
        command.digits(parts, *command.FAST, f"--stages={stage}", check=True)
    want, got = parameters(quiet), parameters(parts)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert list(command.rows(parts)) == list(command.rows(quiet))
    assert sorted(path.name for path in (parts / "export").iterdir()) == sorted(
        path.name for path in (quiet / "export").iterdir()
    )


def test_what_is_exported_answers_as_the_model(quiet):
    assert (quiet / "export" / "int8_wads.stablehlo").exists()
    assert (quiet / "export" / "int8_wads.safetensors").exists()
    parity = json.loads((quiet / "export" / "int8_wads.json").read_text())["parity"]
    assert parity["stablehlo"]["max_relative_difference"] < 1e-6
    assert parity["onnx"]["top1_agreement"] > 0.98
    assert parity["onnx"]["mean_relative_difference"] < 0.01
    assert (quiet / "report.html").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    result = command.digits(tmp_path / "work", "--dry_run", check=True)
    assert "blocks_1/mlp/fc2" in result.stdout
    assert "quantized" in result.stdout
    assert "% of the encoder's linear parameters" in result.stdout
    assert not (tmp_path / "work").exists()


def test_results_follow_the_schema(quiet):
    results = json.loads((quiet / "results.json").read_text())
    assert results["schema"] == 1
    assert results["model"] == "vit_pico"
    kinds = {
        "name": str,
        "params": int,
        "linear_gflops": float,
        "size_mb": float,
        "top1": float,
        "top5": float,
        "n_images": int,
        "seconds": float,
        "notes": str,
        **dict.fromkeys(("images", "fingerprint", "checksum"), str),
    }
    for row in results["rows"]:
        assert {name: type(value) for name, value in row.items()} == kinds
        assert row["n_images"] == 297
    assert [row["name"] for row in results["rows"]] == [
        "dense", "lra", "lra_whitened", "rb_lra_kd", "int8_naive", "int8_per_token", "int8_wads",
    ]  # fmt: skip
