"""What stops a run, through the real command: it says so, loses nothing, and the same command goes on."""

import shutil
import subprocess

import numpy as np
import pytest

from lraqvit_jax.base import errors
from tests.integration import command
from tests.integration.test_resume import AFTER_STEP, BEFORE_ROW, parameters

TEACHER = (*command.FAST, "--stages=teacher")
TERMINATED = AFTER_STEP.replace(", 9)", ", 15)")
LIMIT = """
import resource
from lraqvit_jax.run import metrics
write = metrics.MetricsLog.write
def full(self, step, values):
    write(self, step, values)
    step == 5 and resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
metrics.MetricsLog.write = full
"""
FILL = """
import os
from lraqvit_jax.run import metrics
write = metrics.MetricsLog.write
def full(self, step, values):
    write(self, step, values)
    if step == 5 and os.environ.get("FULL"):
        with open({filler!r}, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
metrics.MetricsLog.write = full
"""
WAITS = """
import time
from lraqvit_jax.run import metrics
write = metrics.MetricsLog.write
def slow(self, step, values):
    write(self, step, values)
    print("step", step, flush=True)
    time.sleep(60)
metrics.MetricsLog.write = slow
"""


def error(result: subprocess.CompletedProcess, code: int) -> str:
    assert result.returncode == code, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    command.digits(workdir, *TEACHER, check=True)
    return parameters(workdir)


def assert_goes_on(workdir, undisturbed) -> None:
    command.digits(workdir, *TEACHER, check=True)
    got = parameters(workdir)
    assert all(np.array_equal(got[name], leaf) for name, leaf in undisturbed.items())


def test_sigterm_in_training_saves_the_step_and_exits_with_75(tmp_path, undisturbed):
    stopped = command.digits(tmp_path, *TEACHER, prelude=TERMINATED.format(run="teacher", step=2), how=command.real)
    assert errors.Preempted.exit_code == 75
    assert "at step 3 of teacher, which is saved" in error(stopped, 75)  # no multiple of checkpoint_every
    assert (tmp_path / "checkpoints" / "teacher.training" / "3").is_dir()
    assert_goes_on(tmp_path, undisturbed)


def test_sigterm_elsewhere_stops_at_once_with_75(tmp_path, undisturbed):
    stopped = command.digits(tmp_path, *TEACHER, prelude=BEFORE_ROW.format(name="dense").replace(", 9)", ", 15)"))
    assert "run the same command again" in error(stopped, 75)
    assert_goes_on(tmp_path, undisturbed)


def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint_whole(tmp_path, undisturbed):
    """A limit on the size of a file stands for the disk here; below, a file system that is really full."""
    assert "The disk takes no file of that size" in error(command.digits(tmp_path, *TEACHER, prelude=LIMIT), 2)
    assert (tmp_path / "checkpoints" / "teacher.training" / "2").is_dir()  # That of step 4 may have got through.
    assert_goes_on(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare here, to mount a small file system")
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """A file system of 2 MB, filled up after step 5; then there is room again."""
    work = tmp_path / "work"
    work.mkdir()
    script = 'mount -t tmpfs -o size=2m tmpfs "$0" || exit 99; FULL=1 "$@"; code=$?; rm "$0/filler"; "$@" && exit $code'
    wrapper = ("unshare", "-rm", "sh", "-c", script, str(work))
    prelude = FILL.format(filler=str(work / "filler"))
    result = command.digits(work, *TEACHER, prelude=prelude, wrapper=wrapper, how=command.real)
    if result.returncode in (1, 99) and "Operation not permitted" in result.stderr:
        pytest.skip("this machine lets nobody mount a file system of its own")
    assert "The disk is full" in error(result, 2)
    assert "dense: top-1" in result.stdout


def test_a_second_run_in_one_work_directory_is_refused(tmp_path):
    first = command.start("--config=configs/digits.py", f"--workdir={tmp_path}", *TEACHER, prelude=WAITS)
    try:
        while "step 1" not in (line := first.stdout.readline()):
            assert line, first.stderr.read()[-2000:]
        before = {name: held for name, held in command.files(tmp_path).items() if name != ".lock"}
        said = error(command.digits(tmp_path, *TEACHER), 2)
        assert f"in use by process {first.pid}" in said
        assert {name: held for name, held in command.files(tmp_path).items() if name != ".lock"} == before
    finally:
        first.kill()
        first.communicate()


def test_a_loss_that_is_not_finite_names_step_layer_and_images(tmp_path):
    said = error(command.digits(tmp_path, *TEACHER, "--config.teacher.learning_rate=1e38"), 2)
    assert "not finite at step" in said
    assert "in the output of " in said or "in the gradient of " in said
    assert "on the batch of images" in said
