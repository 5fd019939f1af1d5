"""The picture of the house: which room imports which, read from the source, and what is promised of it.

A room is a folder or a file at the top of `lraqvit_jax/`, and `configs/` and `launch/`. An import counts wherever it
stands: at the top, inside a function, under TYPE_CHECKING. `importlib.import_module` by a string is not followed: by it
a room finds the files of its own folder, and `main` the stages.
"""

import ast
import collections
import functools
import graphlib
import importlib
import itertools
import pathlib
import re
import subprocess
import sys

import pytest

from lraqvit_jax import config
from tests.docs import blocks

ROOT = pathlib.Path(__file__).parents[2]
HOUSE = "lraqvit_jax"
FLAT = {"__init__", "main", "predict", "config"}
"""What users start and import; every other module lies in a folder."""
ARITHMETIC = ("lowrank", "quant", "calibration", "forms")
"""Rooms of pure functions on arrays."""
SURROUNDINGS = {"run", "stages", "config"}
"""Rooms of files and flags."""
SOURCES = {
    path.relative_to(ROOT): ast.parse(path.read_text())
    for folder in (HOUSE, "configs", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def room_of(path: pathlib.Path) -> str:
    """`plan` of lraqvit_jax/plan/ranks.py, `main` of lraqvit_jax/main.py, `configs` of configs/digits.py."""
    return path.with_suffix("").parts[1] if path.parts[0] == HOUSE else path.parts[0]


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Modules that a statement imports, by their whole names; `package` is that of its file."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package[: len(package) - node.level + 1] if node.level else ()
    base = ".".join([*above, *([node.module] if node.module else [])])
    return [name if is_module(name := f"{base}.{alias.name}") else base for alias in node.names]


def target(name: str) -> str | None:
    """The room of a module; None outside the house."""
    top, *rest = name.split(".")
    if top == HOUSE:
        return rest[0] if rest else "__init__"
    return top if top in ("configs", "launch") else None


def arrows_of(sources: dict[pathlib.Path, ast.Module]) -> dict[tuple[str, str], list[str]]:
    """The files behind each arrow (a room, another one that it imports)."""
    arrows = collections.defaultdict(list)
    for path, tree in sources.items():
        for node in ast.walk(tree):
            for name in imported(node, path.parts[:-1]):
                if (room := target(name)) and room != room_of(path):
                    arrows[room_of(path), room].append(f"{path} -> {name}")
    return dict(arrows)


ARROWS = arrows_of(SOURCES)
ROOMS = sorted({room_of(path) for path in SOURCES} | {room for arrow in ARROWS for room in arrow})


def picture(arrows=ARROWS, rooms=ROOMS) -> str:
    """A line for each room."""
    lines = [f"{len(rooms)} rooms, {len(arrows)} arrows"]
    lines += [f"  {room} -> {', '.join(sorted(to for start, to in arrows if start == room))}" for room in rooms]
    return "\n".join(lines)


def circle(arrows) -> list[str]:
    """Rooms of a circle in order, the first one again at its end; [] where there is none."""
    graph = collections.defaultdict(set)
    for start, to in arrows:
        graph[start].add(to)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


def test_a_house_can_be_seen_whole():
    assert len(ROOMS) <= 28, picture()
    assert len(ARROWS) <= 140, picture()


def test_no_room_leads_back_to_itself():
    rooms = circle(ARROWS)
    steps = [step for arrow in itertools.pairwise(rooms) for step in ARROWS[arrow][:3]]
    assert not rooms, "\n".join([" -> ".join(rooms), *steps, picture()])


def test_the_base_imports_nothing_of_the_house():
    assert {to: files for (start, to), files in ARROWS.items() if start == "base"} == {}, picture()


@pytest.mark.parametrize("room", ARITHMETIC)
def test_arithmetic_knows_neither_files_nor_flags(room):
    wrong = {to: files for (start, to), files in ARROWS.items() if start == room and to in SURROUNDINGS}
    assert wrong == {}, picture()


def test_the_hall_is_empty():
    assert {path.stem for path in (ROOT / HOUSE).glob("*.py")} == FLAT


NEST = {
    "lraqvit_jax/base/errors.py": "import os\nfrom . import console",
    "lraqvit_jax/plan/cost.py": "def cost():\n    from lraqvit_jax.base import errors\n    import lraqvit_jax.config",
    "lraqvit_jax/config.py": "if TYPE_CHECKING:\n    from lraqvit_jax.plan import cost",
    "configs/small.py": "import importlib\nfrom lraqvit_jax import config\nimportlib.import_module('lraqvit_jax.run')",
}


def test_imports_are_seen_wherever_they_stand():
    arrows = arrows_of({pathlib.Path(path): ast.parse(text) for path, text in NEST.items()})
    assert set(arrows) == {("plan", "base"), ("plan", "config"), ("configs", "config"), ("config", "plan")}
    rooms = circle(arrows)
    assert rooms[0] == rooms[-1]
    assert set(rooms) == {"plan", "config"}
    assert circle({("a", "b"): [], ("b", "c"): []}) == []


PAGES = [page for page in blocks.PAGES if page.name != "rooms.md"]
TABLE = re.findall(r"^\| `(.+)` \| `(.+)` \|$", (ROOT / "docs" / "rooms.md").read_text(), re.MULTILINE)
"""Names of before and of now."""
DOTTED = re.compile(r"(?<!`)`(?:lraqvit_jax\.)?([a-z_]+(?:\.\w+)+)(?:\(|`)")
REFERENCE = re.compile(r"^::: lraqvit_jax\.?(\S*)", re.MULTILINE)
FOLDERS = {room for room in ROOMS if (ROOT / HOUSE / room).is_dir()}
BEFORE = {old.partition(".")[0] for old, _ in TABLE} - FOLDERS
"""What no name of a module begins with any more."""
FILE = re.compile(r".*\.(?:py|json|jsonl|html|csv|txt|sh|onnx|npz|zip)")


@functools.cache
def fields() -> set[str]:
    """Every field of the config and every group of them."""
    leaves = config.leaves(config.default().to_dict())
    return {".".join(leaf.split(".")[: depth + 1]) for leaf in leaves for depth in range(leaf.count(".") + 1)}


def exists(name: str) -> bool:
    """Whether a name below lraqvit_jax is a module, or something in one."""
    parts = name.split(".") if name else []
    depth = max(n for n in range(len(parts) + 1) if is_module(".".join([HOUSE, *parts[:n]])))
    found = importlib.import_module(".".join([HOUSE, *parts[:depth]]))
    return functools.reduce(lambda owner, part: getattr(owner, part, None), parts[depth:], found) is not None


def is_field(name: str) -> bool:
    """Whether it names a field of the config, as `runs.NAME.branch` does."""
    pattern = re.escape(name).replace("NAME", r"[^.]+")
    return any(re.fullmatch(pattern, field) for field in fields())


def missing(text: str) -> set[str]:
    """Names in backticks that begin as a module's and are none's."""
    dotted = {name for name in DOTTED.findall(text) if name.partition(".")[0] in FOLDERS | BEFORE}
    dotted = {name for name in dotted if not FILE.fullmatch(name) and not is_field(name)}
    return {name for name in {*dotted, *REFERENCE.findall(text)} if not exists(name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_modules_that_there_are(page):
    assert missing(page.read_text()) == set()


def test_a_name_that_is_gone_is_seen():
    text = (
        "`layers.Linear`, `quant.wads`, `plan.budget`, `models.linear.Linear`, `plan.json`\n::: lraqvit_jax.train.fit"
    )
    assert missing(text) == {"layers.Linear", "quant.wads", "train.fit"}


def test_the_list_of_moves_is_true():
    assert {new for _, new in TABLE if not is_module(f"{HOUSE}.{new}")} == set()
    assert {old for old, _ in TABLE if is_module(f"{HOUSE}.{old}")} == {"plan"}  # That one became a room.


@pytest.mark.parametrize("module", ["main", "bench.__main__", "predict", "config", "api", "report.__main__"])
def test_a_command_line_is_read_before_jax_is_imported(module):
    """No --help and no mistyped flag waits seconds for it."""
    code = f"import sys, {HOUSE}.{module}; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
