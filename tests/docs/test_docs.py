"""Every command and snippet of the pages is run, or parsed, or says what it needs."""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest

from lraqvit_jax import config
from tests.docs import blocks
from tests.docs.blocks import ROOT, Block

EVERY = [block for page in blocks.PAGES for block in blocks.of(page)]
SHOWN = ("text", "json", "dockerfile")
"""Fences that hold neither commands nor Python."""
ELSEWHERE = {
    "test.sh": ".ci/run",
    "gpu_slurm.sh": "tests/unit/launch/test_launch.py",
    "k8s.sh": "tests/unit/launch/test_launch.py",
    "tpu_vm.sh": "tests/unit/launch/test_launch.py",
}
"""Scripts of launch/, and what runs them."""
MAIN = "lraqvit_jax.main"
PARSED = (MAIN, "lraqvit_jax.bench")
FIELDS = [MAIN, "--config=configs/vit_tiny_paper.py", "--workdir=DIR"]
"""What a line of fields alone is put behind."""


def ours(block: Block) -> list[list[str]]:
    """The module and the words of each command of Python's in a block."""
    found = []
    for words in blocks.commands(block):
        if "python" in words[0] and words[1] == "-m" and words[2] != "http.server":
            found.append([word for word in words[2:] if word != "..."])
        elif words[0].startswith("--config."):
            found.append([*FIELDS, *words])
    return [words for words in found if words[0] != "venv"]


def placeholders(words: list[str]) -> bool:
    """Whether a command is a pattern, such as `bench NAME --config FILE`."""
    return any(word in ("NAME", "FILE", "CONFIG", "--config.NAME") for word in words)


OURS = [(block, words) for block in EVERY if block.kind in ("command", "inline") for words in ours(block)]


@pytest.mark.parametrize("block", [one for one in EVERY if one.kind == "command" and not one.mark], ids=str)
def test_a_command_is_ours_or_run_elsewhere_or_says_what_it_needs(block):
    for words in blocks.commands(block):
        script = next((word for word in words[:4] if word.startswith("launch/")), "")
        if script:
            assert script.removeprefix("launch/") in ELSEWHERE, f"nothing runs {script}"
        else:
            assert words[0].startswith(("python", "--config.")), f"mark it: <!-- needs: ... --> above {words}"


def test_no_program_of_a_block_is_started_whatever_its_path(tmp_path):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    relative = os.path.relpath(program, ROOT)
    text = f"{program} install 'a[b]' && {relative} again\nls -l"
    found = blocks.commands(Block("page.md", 1, "command", text, ""))
    assert found == [[str(program), "install", "a[b]"], [relative, "again"], ["ls", "-l"]]
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("script", "runner"), ELSEWHERE.items())
def test_a_script_is_run_by_what_is_said_to_run_it(script, runner):
    assert script in (ROOT / runner).read_text()


def test_paths_of_files_exist():
    text = "".join(page.read_text() for page in blocks.PAGES)
    named = set(re.findall(r"(?<![\w/.])(?:tests|launch|configs|examples|lraqvit_jax)/[\w/.]*\w", text))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert {path for path in missing if not re.search(PATTERNS, path)} == set()


PATTERNS = r"NAME|KIND|examples/web/model.onnx|lowrank/sketch.py|terms/cosine.py"
"""Files that are not there: patterns, and what a reader makes."""


def wrong_with(lines: list[list[str]]) -> list[str]:
    """What is wrong with each command line of `main` or `bench`, found by parsing it; "" for nothing."""
    parser = [sys.executable, "-m", "tests.docs.parsing"]
    done = subprocess.run(parser, input=json.dumps(lines), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_flags_and_fields_are_those_that_there_are():
    """A field that was renamed breaks this test, also where a command takes hours."""
    lines = [(block, words) for block, words in OURS if words[0] in PARSED and not placeholders(words)]
    assert len(lines) > 40
    names = {f"--config.{name}" for name in config.leaves(config.default().to_dict())}
    values = [[word for word in words if word not in names] for _, words in lines]  # A name alone has no value.
    wrong = zip(lines, wrong_with(values), strict=True)
    assert [f"{block}: {said}" for (block, _), said in wrong if said] == []


@pytest.mark.parametrize(
    "wrong", ["plan.budgets=0.5", "plan.unit=params2", "quant.methods.int8_wads.bit=7", "seed=many"]
)
def test_a_field_that_there_is_not_is_found(wrong):
    assert wrong_with([[*FIELDS, f"--config.{wrong}"], FIELDS]) != ["", ""]
    assert wrong_with([FIELDS]) == [""]


def test_another_file_stage_or_measurement_is_found():
    rest = FIELDS[1:]
    lines = [[MAIN, "--config=configs/none.py", "--workdir=DIR"], [MAIN, *rest, "--stages=distil"]]
    assert all(wrong_with([*lines, ["lraqvit_jax.bench", "latencies", *rest]]))


def test_other_modules_take_their_words():
    for block, words in OURS:
        if words[0] in PARSED or not words[0].startswith("lraqvit_jax"):
            continue
        module = importlib.import_module(words[0])
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{words[0]}.__main__")
        if words[1:]:
            assert module.parse(words[1:]), block


def test_the_options_page_names_the_fields_that_may_change():
    page = (ROOT / "docs" / "options.md").read_text()
    assert all(f"`{name}`" in page for name in config.FREE)


@pytest.mark.parametrize("block", [one for one in EVERY if one.kind not in ("command", "inline", "python")], ids=str)
def test_other_fences_are_for_looking_at(block):
    assert block.kind in SHOWN


@pytest.mark.parametrize("block", [one for one in EVERY if one.kind == "python" and one.mark], ids=str)
def test_a_snippet_that_is_not_run_is_python(block):
    compile(block.text, str(block), "exec")
