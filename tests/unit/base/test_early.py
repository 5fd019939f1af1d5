"""A command that is stopped while it starts says so in one sentence."""

import signal
import subprocess
import sys
import threading

import pytest

from lraqvit_jax.base import early


@pytest.fixture(autouse=True)
def interruptible():
    """Commands are, though the tests run in the background of a script, where Ctrl-C is ignored and so by all below."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (["python", "-m", "lraqvit_jax.main", "--config", "x"], True),
        (["python", "-OO", "-m", "lraqvit_jax.bench", "latency"], True),
        (["python", "-m", "lraqvit_jax.predict", "-m"], True),
        (["python", "/usr/bin/lraqvit_jax"], True),
        (["python", "/env/bin/lraqvit_jax-predict", "photo.jpg"], True),
        (["python", "-m", "lraqvit_jax.bench._worker"], False),
        (["python", "-m", "pytest", "lraqvit_jax"], False),
        (["python", "-m"], False),
        (["python", "train.py", "lraqvit_jax"], False),
        (["python", "-c", "import lraqvit_jax"], False),
        (["python"], False),
    ],
)
def test_only_our_commands_take_signals(argv, ours):
    assert early.is_command(argv) == ours


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
@pytest.mark.parametrize("after", [0.0, 0.1, 0.3])
def test_a_command_that_is_being_imported_ends_with_a_sentence(kind, code, after, tmp_path):
    """The signal comes `after` so many seconds beyond the moment at which the package is there."""
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path / 'w'}"]
    command = [sys.executable, "-v", "-m", "lraqvit_jax.main", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "lraqvit_jax.base.version" in line:  # imported after `early`
                break
        threading.Timer(after, process.send_signal, [kind]).start()
        said = process.stderr.read()
    assert process.wait() == code
    assert "error: Interrupted" in said or "error: Stopped by SIGTERM" in said
    assert "Traceback" not in said
    assert not (tmp_path / "w").exists()


def test_a_program_that_imports_us_keeps_its_signals():
    code = "import signal, lraqvit_jax.main; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
