"""The site that launch/docs.sh makes. Slow: it installs what requirements-docs.txt names."""

import re
import subprocess

import pytest

from tests.docs.blocks import ROOT

LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)[^>]*>")


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = ["bash", "launch/docs.sh", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(pages) > 25
    assert {path.name: found for path, text in pages.items() if (found := LOADED.findall(text))} == {}
    assert not any("@import" in path.read_text() for path in tmp_path.rglob("*.css"))
    equations = pages[tmp_path / "method.html"]
    assert equations.count("<math") > 40
    assert "$$" not in equations


def test_what_is_loaded_from_elsewhere_is_found():
    assert LOADED.findall('<script defer src="https://cdn.org/a.js"></script><link rel=x href=//fonts.org/b>')
    assert not LOADED.findall('<a href="https://example.org"></a><script src="assets/a.js"></script>')
