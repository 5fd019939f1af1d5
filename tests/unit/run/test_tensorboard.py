"""TensorBoard's event files say what metrics.jsonl says, after interruptions too."""

import sys

import numpy as np
import pytest

from lraqvit_jax import config
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.run import metrics, opening
from tests import events


def log(path, run, steps, start=0, scale=1.0):
    one = metrics.MetricsLog(path, run, start, events=True)
    for step in steps:
        one.write(step, {"loss": scale / step, "grad_norm": 2.0 * step})
    one.close()


def rows(path, run):
    """What metrics.jsonl has of a run, as `events.scalars` gives it."""
    return {
        row["step"]: {name: np.float32(value) for name, value in row.items() if name not in ("run", "step")}
        for row in metrics.read(path)
        if row["run"] == run
    }


def test_event_files_have_the_rows_of_each_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, "teacher", [1, 2, 3])
    log(path, "rb_lra_kd", [2, 4])
    for run, steps in (("teacher", [1, 2, 3]), ("rb_lra_kd", [2, 4])):
        found = events.scalars(tmp_path / "tensorboard" / run)
        assert found == rows(path, run)
        assert [*found] == steps


def test_steps_from_before_an_interruption_are_void(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, "teacher", [1, 2, 3, 4])
    log(path, "teacher", [3, 5], start=2, scale=10.0)
    log(path, "teacher", [5, 6], start=4, scale=100.0)
    found = events.scalars(tmp_path / "tensorboard" / "teacher")
    assert found == rows(path, "teacher")
    assert [*found] == [1, 2, 3, 5, 6]
    assert found[5]["loss"] == 20


def test_without_it_there_are_no_event_files(tmp_path):
    metrics.MetricsLog(tmp_path / "metrics.jsonl", "teacher", 0).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_package_that_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    fields = config.default()
    fields.update(model="vit_pico", tensorboard=True)
    fields.data.update(train="embedded:digits", eval="embedded:digits")
    fields.preprocess.size = 8
    fields.plan.multiple = 2
    fields.batch_size = fields.eval_batch_size = 8
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        opening.open_workspace(config.parse(fields.to_dict()), tmp_path / "work")
    assert not (tmp_path / "work").exists()
