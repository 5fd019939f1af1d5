"""The fuzz driver: a few hundred inputs with the ordinary suite, all with `-m slow`, in a process of its own."""

import json
import os
import random
import subprocess
import sys

import pytest

from tests.integration.command import ROOT
from tests.slow import fuzz


def test_a_few_hundred_damaged_inputs_are_read_or_refused():
    tallies = fuzz.fuzz(400, seed=0)
    assert fuzz.failures(tallies) == []
    assert sum(tally.answers.total() for tally in tallies.values()) >= 380


def test_mutations_follow_from_the_seed_and_differ_from_the_input():
    content = fuzz.RESULTS
    for change in (fuzz.mutate, fuzz.mutate_json):
        first, again = ([change(content, random.Random(seed)) for seed in range(20)] for _ in range(2))
        assert first == again
        assert sum(one != content for one in first) > 15
    json.loads(fuzz.mutate_json(content, random.Random(3)))


def test_a_failure_is_told(tmp_path, monkeypatch):
    def broken(content):
        raise KeyError("rows")

    monkeypatch.setattr(fuzz, "readers", lambda where: {"it": fuzz.Reader(broken, [b"x"], 1)})
    tallies = fuzz.fuzz(3, seed=0, keep=tmp_path)
    assert "KeyError at test_fuzz.py" in fuzz.failures(tallies)[0]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x"]


@pytest.mark.slow
def test_a_hundred_thousand_damaged_inputs_within_the_bound_of_memory():
    command = [sys.executable, "-m", "tests.slow.fuzz", "--inputs", "100000", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
