"""What pip installs is all that the commands need: entry points that are there, and configs that are found."""

import importlib
import pathlib
import tomllib

import pytest

from lraqvit_jax import main

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("command", PROJECT["project"]["scripts"])
def test_an_installed_command_is_what_python_m_runs(command):
    module, _, name = PROJECT["project"]["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert "__main__" in pathlib.Path(importlib.import_module(module).__file__).read_text()


def test_every_file_of_the_package_that_is_no_module_is_installed():
    package = ROOT / "lraqvit_jax"
    globs = PROJECT["tool"]["setuptools"]["package-data"]["lraqvit_jax"]
    installed = {path for pattern in globs for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == installed


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Where pip puts the configs, and an empty current directory."""
    (folder,) = PROJECT["tool"]["setuptools"]["data-files"]
    place = tmp_path / "prefix" / folder / "digits.py"
    place.parent.mkdir(parents=True)
    place.write_text((ROOT / "configs" / "digits.py").read_text())
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "prefix"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return place


def test_configs_are_found_without_a_checkout(installed):
    assert main._installed("--config=configs/digits.py") == f"--config={installed}"
    assert main._installed("configs/digits.py") == str(installed)
    assert main._installed("-config=configs/digits.py:x") == f"-config={installed}:x"


def test_a_file_of_the_user_comes_first(installed, tmp_path):
    (tmp_path / "here" / "configs").mkdir()
    (tmp_path / "here" / "configs" / "digits.py").write_text("")
    for word in ("--config=configs/digits.py", "--config=configs/none.py", "--workdir=configs/digits.py", "x\ny", ""):
        assert main._installed(word) == word
