"""`python -m lraqvit_jax.report`, for one run and for several."""

import collections
import re
import shutil
import sys

import numpy as np
import pytest

from lraqvit_jax.base import arguments
from lraqvit_jax.report import __main__ as command
from lraqvit_jax.report import read
from tests.unit.report.made import ROWS, Page, add_dense, add_rows, fields, opened, section


@pytest.fixture(scope="module")
def two(whole, tmp_path_factory):
    """Work directories of the same name in two folders; the second has another seed and one more run."""
    folder = tmp_path_factory.mktemp("two")
    runs = {**fields()["runs"], "low_rank": fields()["runs"]["rb_lra_kd"]}
    ws = opened(folder / "other" / whole[0].directory.name, seed=5, runs=runs)
    add_rows(ws, ROWS[:2])
    add_dense(ws, np.random.default_rng(1))
    return [whole[0].directory, ws.directory]


def test_runs_are_compared_side_by_side(two, tmp_path):
    target = command.make([str(path) for path in two], str(tmp_path / "both.html"))
    text = target.read_text()
    found = Page(text)
    names = [f"{path.parent.name}/{path.name}" for path in two]
    assert all(name in text for name in names)
    listed = section(text.replace("<wbr>", ""), "Results")
    numbers = re.findall(r'<span class="n">(\d+) </span>(\w+)', listed)
    assert [name for _, name in numbers] == ["dense", "rb_lra_kd", "int8_wads", "dense", "rb_lra_kd"]
    assert [int(number) for number, _ in numbers] == [1, 2, 3, 4, 5]
    differ = Page(section(text, "What differs in the configurations"))
    assert differ.text["th"] == ["field", *names, "runs.low_rank", "seed"]
    assert differ.text["td"] == ["-", "set", "0", "5"]
    assert "different images" not in text
    assert len([attrs for _, attrs in found.tags if "map" in attrs.get("class", "").split()]) == 2
    assert max(collections.Counter(found.attributes("id")).values()) == 1
    assert command.make([str(path) for path in two], str(target)).read_text() == text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "There is no directory"),
        (lambda folder: (folder / "results.json").unlink(), "has no results.json"),
        (lambda folder: (folder / "results.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text('{"config": 3}'), "config.json has config = 3"),
        (lambda folder: (folder / "plan.json").write_text("[]"), "plan.json is not a JSON object"),
        (lambda folder: (folder / read.LATENCY).write_text('{"rows": [3]}'), "latency-runtimes.json has row = 3"),
        (lambda folder: (folder / read.LOW_RANK).write_text('{"rows": [{"name": 1}]}'), "lowrank.json has name = 1"),
        (
            lambda folder: (folder / "report" / "examples.json").write_text('{"images": 1}'),
            "examples.json has images = 1",
        ),
        (
            lambda folder: (folder / "report" / "answers-dense.npz").write_bytes(b"?"),
            "answers-dense.npz cannot be read",
        ),
    ],
)
def test_a_mistake_is_one_sentence(whole, tmp_path, capsys, monkeypatch, spoil, words):
    folder = shutil.copytree(whole[0].directory, tmp_path / "copy")
    spoil(folder)
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--output", str(tmp_path / "new.html")])
    with pytest.raises(SystemExit) as stopped:
        arguments.run(command.command)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda folder: [folder, folder], "named twice"),
        (lambda folder: [folder, "--output", f"{folder}/no/such/place.html"], "--output"),
        (lambda folder: [], "following arguments are required: DIR"),
        (lambda folder: [folder, "--colour"], "--colour is not an argument here"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(whole, capsys, monkeypatch, given, words):
    monkeypatch.setattr(sys, "argv", ["report", *given(str(whole[0].directory))])
    with pytest.raises(SystemExit) as stopped:
        arguments.run(command.command)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
