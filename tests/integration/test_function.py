"""A function of somebody's, by the command: its table, files and report, gone on with, and refused in a sentence."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import lraqvit_jax
from lraqvit_jax import config as config_lib
from lraqvit_jax import main
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.stages import function

PROGRAM = """
import flax.linen as nn
import jax
import numpy as np

import lraqvit_jax


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(48)(nn.LayerNorm()(x))))
        return nn.Dense(5)(x.mean(1))


def task():
    draw = np.random.default_rng(0)
    batches = [draw.standard_normal((8, 6, 16)).astype(np.float32) for _ in range(6)]
    net = Net()
    params = net.init(jax.random.key(0), batches[0])
    answers = [np.argmax(net.apply(params, batch), -1) for batch in batches]

    def evaluate(run):
        right = [np.mean(np.argmax(run(batch), -1) == answer) for batch, answer in zip(batches, answers, strict=True)]
        return {"agreement": 100 * float(np.mean(right))}

    return lraqvit_jax.Task(net.apply, params, batches, evaluate)


def bare():
    given = task()
    return tuple(given)[:3]


def nothing():
    return 3


def fails():
    raise RuntimeError("no such file")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Its module is in the current folder, as a user's is."""
    name = f"theirs_{re.sub(r'[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return name


def options(program, name="task", **fields):
    made = config_lib.function()
    made.update(model=f"import:{program}:{name}", **{"budget": 0.7, **fields})
    return config_lib.parse_function(made.to_dict())


def test_a_run_makes_table_files_and_report_and_goes_on(program, tmp_path, capsys):
    directory = tmp_path / "work"
    function.run(options(program), str(directory))
    rows = json.loads((directory / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "small", "int8"]
    assert rows[0]["metrics"] == {"agreement": 100.0}
    assert rows[0]["change"] == 0
    assert rows[1]["params"] < 0.85 * rows[0]["params"]
    assert rows[2]["size_mb"] < 0.5 * rows[1]["size_mb"]
    assert all(0 < row["change"] < 0.5 and row["metrics"]["agreement"] > 50 for row in rows[1:])
    printed = capsys.readouterr().out
    assert re.search(r"int8 .*8 bits, dynamic", printed)
    page = (directory / "report.html").read_text()
    assert "Dense_0" in page and "agreement" in page and "<script" not in page

    module = __import__(program)
    given = module.task()
    for name in ("dense", "small", "int8"):
        exported = jax.export.deserialize(bytearray((directory / "export" / f"{name}.stablehlo").read_bytes()))
        want = given.apply(given.params, given.batches[0]) if name == "dense" else None
        want = lraqvit_jax.load(directory, name)(given.batches[0]) if want is None else want
        np.testing.assert_allclose(exported.call(given.batches[0]), want, atol=1e-4)
        assert exported.call(given.batches[0][:3]).shape == (3, 5)
    assert repr(lraqvit_jax.load(directory)) == repr(lraqvit_jax.load(directory, "int8"))

    before = {path: path.stat().st_mtime_ns for path in (directory / "checkpoints").rglob("*") if path.is_file()}
    (directory / "results.json").unlink()
    function.run(options(program, export=False), str(directory))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = json.loads((directory / "results.json").read_text())["rows"]
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]


def test_the_command_does_the_same(program, tmp_path):
    root = pathlib.Path(main.__file__).parents[1]
    command = [sys.executable, "-m", "lraqvit_jax.main", f"--config={root}/configs/any.py", "--workdir=work"]
    command += [f"--config.model=import:{program}:bare", "--config.budget=0.6", "--config.bits=0"]
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def ran(*more):
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )

    found = ran("--dry_run")
    assert found.returncode == 0, found.stderr
    assert "score product; value product" in found.stdout
    assert not (tmp_path / "work").exists()
    done = ran()
    assert done.returncode == 0, done.stderr
    assert re.search(r"small .*60% of the kernels, no training", done.stdout)
    wrong = ran("--stages=plan")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


MISTAKES = {
    "no_such_module:task": "cannot be imported",
    "{}:tsak": "did you mean 'task'",
    "{}:nothing": "gives 3",
    "{}:fails": "no such file",
    "{}": "write import:package.module:function",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_task_is_refused_in_a_sentence(name, program, tmp_path):
    made = config_lib.function()
    made.model = f"import:{name.format(program)}"
    with pytest.raises(UserError, match=re.escape(MISTAKES[name])):
        function.run(config_lib.parse_function(made.to_dict()), str(tmp_path / "work"))


def test_fields_that_do_not_go_together_are_refused(program, tmp_path):
    ours = config_lib.default()
    ours.model = f"import:{program}:task"
    with pytest.raises(UserError, match=re.escape("configs/any.py")):
        config_lib.parse_function(ours.to_dict())
    with pytest.raises(UserError, match=re.escape("write --config.model=import:")):
        config_lib.parse_function(config_lib.function().to_dict())
    with pytest.raises(UserError, match="quantizer is"):
        options(program, quantizer="wadz")
    directory = tmp_path / "work"
    function.run(options(program, bits=0, export=False), str(directory))
    with pytest.raises(UserError, match=re.escape("budget was 0.7 and is 0.5")):
        function.run(options(program, budget=0.5, bits=0, export=False), str(directory))
    with pytest.raises(UserError, match="There is no function"):
        lraqvit_jax.load(directory, "int4")


def test_a_saved_function_is_read_back_or_refused(program, tmp_path):
    given = __import__(program).task()
    small = lraqvit_jax.compress(given.apply, given.params, given.batches, budget=0.7, bits=4)
    small.save(tmp_path / "small")
    again = lraqvit_jax.Function.restore(tmp_path / "small", given.apply, given.params, given.batches[0])
    np.testing.assert_array_equal(again(given.batches[1]), small(given.batches[1]))
    assert (again.parameters, again.nbytes, again.macs) == (small.parameters, small.nbytes, small.macs)
    with pytest.raises(UserError, match="is there already"):
        small.save(tmp_path / "small")
    other = jax.tree.map(lambda leaf: leaf[..., :-1] if leaf.ndim == 1 else leaf, given.params)
    with pytest.raises(UserError, match="whose parameter"):
        lraqvit_jax.Function.restore(
            tmp_path / "small", lambda params, x: x @ np.ones((16, 2)), other, given.batches[0]
        )
    array = next(
        path for path in (tmp_path / "small" / "params").rglob("*") if path.is_file() and path.stat().st_size > 3000
    )
    array.write_bytes(array.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is damaged"):
        lraqvit_jax.Function.restore(tmp_path / "small", given.apply, given.params, given.batches[0])
