"""Commands and snippets of the pages that people read, as they stand there.

An indented block, or a fence named bash, is a command; a fence named python is a snippet; every other fence is only to
look at. A comment `<!-- needs: WHAT -->` or `<!-- long: HOW LONG -->` right above says why a block is not run here.
"""

import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
MARK = re.compile(r"<!-- (needs|long): (.+) -->")
INLINE = re.compile(r"(?<!`)`((?:python|bash) [^`]+|--config\.[^`]+)`(?!`)")
RECORD = r"""
command_not_found_handle() { printf '%s\0' "$@" $'\n' >> "$RECORD"; }
source() { command_not_found_handle source "$@"; }
"""
"""With no program in PATH, bash hands every command to this function, with its words as they are after expansion."""
PATHS = re.compile(r"[\w.-]*/[\w./-]*\w")
"""What bash would start without looking into PATH, were there no function of that name."""


class Block(NamedTuple):
    """A piece of a page.

    Attributes:
        page: path below the root.
        line: its first, from 1.
        kind: "command", "inline" (a command between words), or the name of the fence.
        text: without indentation.
        mark: what it needs or how long it takes; "" where it is to be run.
    """

    page: str
    line: int
    kind: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def of(page: pathlib.Path) -> list[Block]:
    """Every block of a page, in order."""
    name, found, mark, rest = str(page.relative_to(ROOT)), [], "", []
    lines = _flat(page.read_text())
    index = 0
    while index < len(lines):
        line, start = lines[index], index
        if line.startswith("```"):
            index = next(after for after in range(index + 1, len(lines)) if lines[after].startswith("```"))
            kind = "command" if line in ("```bash", "```sh") else line.removeprefix("```")
            found.append(Block(name, start + 1, kind, "\n".join(lines[start + 1 : index]), mark))
            mark = ""
        elif line.startswith("    ") and (not index or not lines[index - 1].strip()):
            while index + 1 < len(lines) and lines[index + 1].startswith("    "):
                index += 1
            text = "\n".join(one[4:] for one in lines[start : index + 1])
            found.append(Block(name, start + 1, "command", text, mark))
            mark = ""
        elif line.strip():
            matched = MARK.fullmatch(line)
            mark = matched[2] if matched else ""
            rest.append((start + 1, line))
        index += 1
    return found + _inline(name, rest)


def _flat(text: str) -> list[str]:
    """The lines, those of an admonition without its indentation."""
    lines, inside = [], False
    for line in text.split("\n"):
        inside = line.startswith("!!! ") or (inside and (not line or line.startswith("    ")))
        lines.append(line[4:] if inside and line.startswith("    ") else line)
    return lines


def _inline(page: str, lines: list[tuple[int, str]]) -> list[Block]:
    """Commands between words; one may go over the end of a line."""
    text = "\n".join(line for _, line in lines)
    numbers = [number for number, _ in lines]
    return [
        Block(page, numbers[text.count("\n", 0, match.start())], "inline", " ".join(match[1].split()), "")
        for match in INLINE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of every command that bash would start for a block, after all its expansions. None is started."""
    with tempfile.TemporaryDirectory() as folder:
        record, programs = pathlib.Path(folder) / "record", pathlib.Path(folder) / "programs"
        programs.mkdir()
        (programs / "seq").symlink_to("/usr/bin/seq")
        environment = {"PATH": str(programs), "RECORD": str(record)}
        named = sorted(set(PATHS.findall(block.text)))
        instead = "".join(f'function {name} {{ command_not_found_handle {name} "$@"; }}\n' for name in named)
        done = subprocess.run(
            ["/bin/bash", "-c", RECORD + instead + block.text],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "syntax error" not in done.stderr, f"{block}: bash does not understand it: {done.stderr}"
        words = record.read_text().split("\0")[:-1] if record.exists() else []
    found: list[list[str]] = [[]]
    for word in words:
        if word == "\n":
            found.append([])
        else:
            found[-1].append(word)
    return found[:-1]
