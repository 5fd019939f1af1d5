"""What the commands say of themselves, and how much they say."""

import re

import numpy as np
import pytest

from lraqvit_jax import main
from lraqvit_jax.run import metrics
from tests import events
from tests.integration import command

SMALL = ("predict", "weights", "report", "export.compare")
"""Commands beside `main` and `bench`."""


@pytest.mark.parametrize("module", SMALL)
def test_a_small_command_starts_teaches_and_says_a_mistake_in_one_sentence(module):
    result = command.real("--help", module=module)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"python -m lraqvit_jax.{module} " in result.stdout
    wrong = command.run("--wrokdir=x", module=module)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert re.fullmatch("error: .*\n", wrong.stderr)


@pytest.mark.parametrize("module", ["main", "bench"])
def test_help_teaches_and_leaves_out_what_is_not_ours(module):
    result = command.real("--help", module=module)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--config=configs/" in result.stdout
    for flag in ("config", "workdir", "stages", "dry_run", "quiet", "verbose"):
        assert re.search(rf"^  --{flag} +[A-Z]", result.stdout, re.MULTILINE)
    assert "stderrthreshold" not in result.stdout  # one of absl's
    assert max(map(len, result.stdout.splitlines())) < 130


def test_verbose_tells_of_devices_plan_and_steps_and_quiet_of_the_table_alone(tmp_path):
    first = (*command.FAST, "--stages=teacher", "--verbose", "--config.tensorboard=True")
    said = command.digits(tmp_path, *first, check=True).stdout
    assert "1 devices" in said
    assert "jaxlib" in said
    assert "blocks_0/mlp/fc1" in said
    assert re.findall(r"^teacher step (\d): .*loss \d", said, re.MULTILINE) == list("123456")
    logged = events.scalars(tmp_path / "tensorboard" / "teacher")
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert {step: logged[step]["loss"] for step in logged} == {row["step"]: np.float32(row["loss"]) for row in rows}
    assert len(rows) == 6
    quiet = command.digits(tmp_path, *command.FAST, "--stages=evaluate", "--quiet", check=True)
    lines = quiet.stdout.splitlines()
    assert [line.split()[0] for line in lines if line] == ["name", "dense", str(tmp_path / "results.json")]
    assert quiet.stderr == ""


@pytest.mark.parametrize("field", ["plan.budget=2.0", "quant.source=none", "teacher.steps=-1"])
def test_a_mistake_is_the_same_one_sentence_however_much_is_printed(tmp_path, field):
    """On stderr, and nothing else there."""
    outputs = [
        command.digits(tmp_path, f"--config.{field}", "--dry_run", *flags).stderr for flags in ((), ("--verbose",))
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 1
    assert outputs[0].startswith("error: ")


@pytest.mark.parametrize(
    "given", [["--config", "configs/vit_tiny_lowrank.py"], ["--config=configs/vit_tiny_lowrank.py"]]
)
def test_a_typo_is_answered_with_fields_of_the_config_file_itself(given, monkeypatch):
    monkeypatch.chdir(command.ROOT)
    assert "config.runs.kfac_kd.branch" in main._fields(["main", *given, "--config.runs.kfac_kd.branhc=3"])
    assert "config.runs.kfac_kd.branch" not in main._fields(["main", "--config=configs/absent.py"])
