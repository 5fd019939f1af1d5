"""Real processes of a few CPU devices each, joined on loopback: killed together, they come back as one process of
as many devices, and end as an undisturbed run of one; undisturbed, they train and answer as one process does on their
mesh, also where several hold the same rows of a batch."""

import contextlib
import functools
import signal
import socket
import subprocess

import numpy as np
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.run import metrics
from lraqvit_jax.weights import artifacts
from tests.integration import command
from tests.integration.test_mesh import curve
from tests.integration.test_resume import AFTER_STEP

ALL = "teacher,factorize,distill,merge,quantize,evaluate,export,report"
CALIBRATED = "teacher,factorize"
MESH = ("--config.mesh.data=4", "--config.mesh.fsdp=2")


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def joined(
    workdir,
    *arguments: str,
    count: int = 2,
    devices: int = 4,
    begin=command.fork,
    config: str = "configs/digits.py",
    **options,
) -> list[subprocess.CompletedProcess]:
    """Runs the command as `count` processes of `devices` each, by `command.fork` or `command.start`; what each said,
    and its exit code."""
    port = free_port()
    processes = [
        begin(
            f"--config={config}",
            f"--workdir={workdir}",
            *(f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"),
            *arguments,
            devices=devices,
            **options,
        )
        for index in range(count)
    ]
    return [command.ended(process) if begin is command.start else process.wait() for process in processes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The work directory of one process that nothing disturbs, by stages."""

    @functools.cache
    def run(stages):
        workdir = tmp_path_factory.mktemp("alone")
        command.digits(workdir, *command.FAST, f"--stages={stages}", check=True)
        return workdir

    return run


def same(work, one):
    """The same steps, losses, rows, and answers to the same images."""
    assert [(row["run"], row["step"]) for row in metrics.read(work / "metrics.jsonl")] == [
        (row["run"], row["step"]) for row in metrics.read(one / "metrics.jsonl")
    ]
    np.testing.assert_allclose(curve(work), curve(one), rtol=2e-4)
    assert list(command.rows(work)) == list(command.rows(one))
    for name, row in command.rows(one).items():
        found = command.rows(work)[name]
        assert found["n_images"] == row["n_images"]
        assert abs(found["top1"] - row["top1"]) < 2
        answers = [np.load(path / "report" / f"answers-{name}.npz") for path in (work, one)]
        for key in ("image", "label"):
            np.testing.assert_array_equal(*(each[key] for each in answers))
        assert np.mean(answers[0]["answer"] == answers[1]["answer"]) > 0.97
        assert found["top1"] == pytest.approx(100 * np.mean(answers[0]["answer"] == answers[0]["label"]))


@pytest.mark.parametrize(
    ("stages", "run"),
    [("teacher", "teacher"), pytest.param(ALL, "rb_lra_kd", marks=pytest.mark.slow)],
    ids=["teacher", "all stages"],
)
def test_two_processes_are_killed_and_come_back_as_one(tmp_path, alone, stages, run):
    work, arguments = tmp_path / "work", (*command.FAST, f"--stages={stages}", *MESH)
    killed = joined(work, *arguments, prelude=AFTER_STEP.format(run=run, step=5))
    assert killed[0].returncode == -signal.SIGKILL, killed[0].stderr[-2000:]
    assert killed[1].returncode != 0  # Killed too, or ended by JAX since its coordinator is gone.
    assert "-- teacher" in killed[0].stdout
    assert "-- teacher" not in killed[1].stdout  # Only the first process prints.
    assert (work / "checkpoints" / f"{run}.training" / "2").is_dir()

    command.digits(work, *arguments, devices=8, check=True)
    same(work, alone(stages))


@pytest.mark.parametrize(
    ("count", "devices", "sizes", "stages"),
    [
        (2, 1, (1, 1, 2), "teacher"),  # Both hold every row.
        pytest.param(2, 1, (1, 1, 2), CALIBRATED, marks=pytest.mark.slow),
        pytest.param(2, 4, (1, 2, 4), CALIBRATED, marks=pytest.mark.slow),  # Each holds a half.
        pytest.param(4, 1, (2, 1, 2), CALIBRATED, marks=pytest.mark.slow),  # Two hold one half, two the other.
        pytest.param(4, 1, (1, 2, 2), "teacher", marks=pytest.mark.slow),
        pytest.param(4, 1, (1, 4, 1), "teacher", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_processes_train_and_answer_as_one_with_the_same_mesh(tmp_path, count, devices, sizes, stages):
    """Images are mixed over the whole batch, and the last batch of the evaluation is ragged."""
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), sizes, strict=True)]
    arguments = (*command.FAST, f"--stages={stages}", "--config.mix.mixup=0.8", *mesh)
    several = joined(tmp_path / "several", *arguments, count=count, devices=devices)
    assert [process.returncode for process in several] == [0] * count, several[0].stderr[-2000:]
    command.digits(tmp_path / "one", *arguments, devices=count * devices, check=True)
    np.testing.assert_allclose(curve(tmp_path / "several"), curve(tmp_path / "one"), rtol=1e-5)
    same(tmp_path / "several", tmp_path / "one")
    got, want = (
        trees.flatten(artifacts.load_artifact(tmp_path / name / "checkpoints" / "dense").params)
        for name in ("several", "one")
    )
    assert sorted(got) == sorted(want)
    for path, leaf in want.items():
        # What is added to all keys changes no softmax: the gradient of that bias is rounding, and Adam steps by it.
        kept = np.delete(np.arange(96), np.s_[32:64]) if path.endswith("qkv/bias") else np.s_[:]
        np.testing.assert_allclose(got[path][kept], leaf[kept], rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_notice_to_one_process_stops_both_at_the_same_saved_step(tmp_path):
    prelude = """
import jax, os
from lraqvit_jax.run import preemption
ask = preemption.reached
def noticed():
    next_ask = noticed.count = noticed.count + 1
    if next_ask == 2 and jax.process_index() == 1:
        os.kill(os.getpid(), 15)
    return ask()
noticed.count = 0
preemption.reached = noticed
"""
    steps = ("--config.teacher.steps=400", "--config.checkpoint_every=1000", "--stages=teacher")
    stopped = joined(tmp_path, *steps, prelude=prelude)
    assert [one.returncode for one in stopped] == [75, 75], stopped[0].stderr[-2000:]
    (folder,) = [path for path in (tmp_path / "checkpoints" / "teacher.training").iterdir() if path.name.isdigit()]
    assert f"at step {folder.name} of teacher, which is saved" in stopped[0].stderr
    assert f"at step {folder.name} of teacher, which is saved" in stopped[1].stderr


def test_a_mistake_stops_all_processes(tmp_path):
    stopped = joined(tmp_path, "--config.data.train=folder:no/such/place", begin=command.start)
    assert [one.returncode for one in stopped] == [2, 2]
    assert all("no/such/place" in one.stderr and "Traceback" not in one.stderr for one in stopped)


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_in_vain_says_so_and_ends(tmp_path, index):
    prelude = "from lraqvit_jax.devices import processes\nprocesses.SILENCE, processes.PATIENCE = 0.5, 2"
    arguments = (f"--coordinator=localhost:{free_port()}", "--num_processes=2", f"--process_id={index}")
    alone = command.digits(tmp_path / "work", *arguments, prelude=prelude)
    assert alone.returncode == 2
    assert "warning: this process still waits for all 2 processes" in alone.stderr
    assert "error: This process waited for all 2 processes to join for 2 s" in alone.stderr
    assert "Traceback" not in alone.stderr
    assert not (tmp_path / "work").exists()
