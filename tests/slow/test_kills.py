"""Twenty random kills; `python -m tests.slow.kills` for more."""

import os
import subprocess
import sys

import pytest

from tests.integration import command
from tests.slow import kills


@pytest.mark.slow
def test_runs_killed_at_random_end_bit_identical(tmp_path):
    found = kills.drive(20, 0, 3.0, 20.0, tmp_path)
    assert found["kills"] == 20
    assert not found["failed"]
    assert not found["different"]


@pytest.mark.parametrize("module", ["kills", "fuzz"])
def test_it_starts_as_a_program(module):
    """Outside of pytest, which sets more of the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TESTS_", "JAX_"))}
    arguments = [sys.executable, "-m", f"tests.slow.{module}", "--help"]
    shown = subprocess.run(arguments, cwd=command.ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "usage: " in shown.stdout
