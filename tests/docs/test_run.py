"""Commands and snippets of the pages, run as they stand there in a folder of small things."""

import json

import numpy as np
import pytest

from lraqvit_jax import config
from tests.docs import blocks, place
from tests.docs.test_docs import EVERY

MAIN = "lraqvit_jax.main"


def commands():
    """Each command of Python's that is to be run, once, and the first place where it stands."""
    found = {}
    for block in EVERY:
        if block.kind == "command" and not block.mark:
            for words in blocks.commands(block):
                if words[0] == "python":
                    found.setdefault(tuple(words), block)
    return found


COMMANDS = commands()
FIRST = next(words for words in COMMANDS if MAIN in words and "configs/vit_tiny_small_data.py" in words)
"""The README's: it makes the work directory of everything else here."""
OTHERS = [
    pytest.param(words, marks=[pytest.mark.slow] if MAIN in words else [], id=str(block))
    for words, block in COMMANDS.items()
    if words != FIRST
]
SNIPPETS = {
    page: code
    for page in blocks.PAGES
    if (code := [one for one in blocks.of(page) if one.kind == "python" and not one.mark])
}
LONG = ("compress(", "smallest(")
"""Snippets with one of these are run in slow tests alone; what they do is tested elsewhere."""
SHORT = {
    page: short
    for page, code in SNIPPETS.items()
    if (short := [one for one in code if not any(call in one.text for call in LONG)])
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("place")
    place.make(path)
    place.run(path, FIRST)
    return path


def test_the_readmes_command_makes_every_file(folder):
    rows = json.loads((folder / "DIR" / "results.json").read_text())["rows"]
    integers = ["int8_per_token_dynamic", "int8_per_token_dynamic_7"]
    assert [row["name"] for row in rows] == ["dense", "small", "dense_int8", *integers]
    made = {path.name for path in (folder / "DIR" / "export").iterdir()}
    assert {f"{name}.{end}" for name in integers for end in ("onnx", "stablehlo", "safetensors")} <= made
    assert (folder / "DIR" / "report.html").exists()


def goes_on(words):
    """Whether a command belongs to the work directory that the first one made: only fields that may change differ."""
    extra = [word for word in words if word not in FIRST and word.startswith("--config.")]
    free = tuple(f"--config.{name}" for name in config.FREE)
    return set(FIRST) <= set(words) and all(word.startswith(free) for word in extra)


@pytest.mark.parametrize("words", OTHERS)
def test_a_command_runs(folder, tmp_path, words):
    if MAIN in words and not goes_on(words):
        words = [str(tmp_path / "DIR") if word == "DIR" else word for word in words]
    assert place.run(folder, list(words)).stdout


def run_snippets(folder, monkeypatch, code):
    """One after another, each with the names that those before it have."""
    monkeypatch.chdir(folder)
    names = {"images": np.zeros((2, place.SIZE, place.SIZE, 3), np.float32)}
    for block in code:
        exec(compile(place.put_in(block.text), str(block), "exec"), names)
    if "logits" in names:
        assert np.shape(names["logits"])[-1] == place.CLASSES


@pytest.mark.parametrize("page", SHORT, ids=lambda page: page.stem)
def test_snippets_run(folder, monkeypatch, page):
    run_snippets(folder, monkeypatch, SHORT[page])


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in SNIPPETS if SNIPPETS[page] != SHORT.get(page)])
def test_long_snippets_run(folder, monkeypatch, page):
    run_snippets(folder, monkeypatch, SNIPPETS[page])
