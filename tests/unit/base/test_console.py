"""What is said, how loudly, and in which colours."""

import io
import re
import time

import pytest

from lraqvit_jax.base import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def normal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    yield
    console.set_level(console.NORMAL)


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    assert console.paint("red", console.RED, Terminal()) == "\033[31mred\033[0m"
    assert console.paint("red", console.RED, io.StringIO()) == "red"
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: only when not empty
    assert console.paint("red", console.RED, Terminal()) != "red"
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.paint("red", console.RED, Terminal()) == "red"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert console.paint("red", console.RED, Terminal()) == "red"


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (console.QUIET, "result\n"),
        (console.NORMAL, "-- stage\nsay\nresult\n"),
        (console.VERBOSE, "-- stage\nsay\ndetail\nresult\n"),
    ],
)
def test_each_level_says_so_much(capsys, level, said):
    console.set_level(level)
    console.heading("-- stage")
    console.say("say")
    console.detail("detail")
    console.result("result")
    console.warn("beware")
    console.error("no")
    assert capsys.readouterr() == (said, "warning: beware\nerror: no\n")


def test_a_bar_appears_while_the_first_item_takes_long_and_is_wiped(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(console, "DELAY", 0.1)
    for number in console.progress(range(3), "work", "item"):
        time.sleep(0.35)
        assert re.search(rf"work: .*{number}/3", terminal.getvalue())
    assert {*re.findall(r"(\d)/3", terminal.getvalue())} <= {*"0123"}
    last = terminal.getvalue().split("\r")
    assert last[-1] == "" and last[-2].isspace()


def test_in_a_notebook_a_bar_moves(monkeypatch):
    class OutStream(io.StringIO):
        __module__ = "ipykernel.iostream"

    page = OutStream()
    monkeypatch.setattr("sys.stderr", page)
    with console.bar(total=2, desc="train") as bar:
        bar.update(2)
    assert page.getvalue().startswith("\rtrain")


def test_in_a_file_each_look_at_a_bar_is_a_line(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setattr(console, "LINE", 0.1)
    monkeypatch.setattr(console, "DELAY", 0.1)
    for _ in console.progress(range(3), "work", "item"):
        time.sleep(0.25)
    with console.bar(total=2, desc="train") as bar:
        bar.update(2)
    console.warn("beware")
    lines = file.getvalue().splitlines()
    assert "\r" not in file.getvalue()
    assert [line[:5] for line in lines] == ["work:"] * (len(lines) - 3) + ["train", "train", "warni"]
    assert len(lines) > 4
    assert "0/2" in lines[-3]
    assert "2/2" in lines[-2]


def test_the_first_line_in_a_file_comes_when_a_bar_would(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setattr(console, "DELAY", 0.1)
    for _ in console.progress(range(2), "work", "item"):
        time.sleep(0.25)
    assert len(file.getvalue().splitlines()) == 1  # the next is due after LINE seconds


def test_short_work_and_quiet_commands_have_no_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(console.progress(iter("abc"), "work", "item", 3)) == ["a", "b", "c"]
    console.set_level(console.QUIET)
    monkeypatch.setattr(console, "DELAY", 0.0)
    for _ in console.progress(range(2), "work", "item"):
        time.sleep(0.05)
    with console.bar(total=3) as bar:
        bar.update(3)
    assert terminal.getvalue() == ""
