"""What a command says, and how much of it: on the first process, in colour on a terminal that wants it."""

import functools
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import IO, Any

from tqdm import tqdm

QUIET, NORMAL, VERBOSE = 0, 1, 2
BOLD, RED, YELLOW = "1", "31", "33"
"""Of ANSI's escape sequences: headings, errors, warnings."""
DELAY = 2.0
"""Seconds of work from which on there is a bar, and between two looks of it."""
LINE = 30.0
"""Between two of them in a file, where each is a line."""
_settings = {"level": NORMAL, "speaks": True}


def set_level(level: int) -> None:
    """QUIET leaves results, warnings and errors; VERBOSE adds what `detail` is given."""
    _settings["level"] = level


def level() -> int:
    return _settings["level"]


def speak(speaks: bool) -> None:
    """Whether this process prints: of several that do the same, one does."""
    _settings["speaks"] = speaks


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """The text in a colour, where `stream` is a terminal and neither NO_COLOR (no-color.org) nor TERM=dumb forbids."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{colour}m{text}\033[0m"


def result(text: Any) -> None:
    """Prints what was asked for, however quiet."""
    if _settings["speaks"]:
        print(text, flush=True)


def say(text: Any) -> None:
    """Prints what happens."""
    if level() > QUIET:
        result(text)


def heading(text: str) -> None:
    """Prints what begins."""
    say(paint(text, BOLD, sys.stdout))


def detail(text: Any) -> None:
    """Prints what only --verbose wants."""
    if level() >= VERBOSE:
        result(text)


def warn(text: str, everywhere: bool = False) -> None:
    """Warns on stderr; from every process, if it says something else on each or they have not met yet."""
    if everywhere or _settings["speaks"]:
        print(f"{paint('warning:', YELLOW, sys.stderr)} {text}", file=sys.stderr, flush=True)


@functools.cache
def warn_once(text: str) -> None:
    """Warns, if this process did not say the same before."""
    warn(text)


def error(text: str) -> None:
    """Says on stderr, from every process, why it ends."""
    print(f"{paint('error:', RED, sys.stderr)} {text}", file=sys.stderr, flush=True)


class _Lines(tqdm):
    """A bar in a file: every look at it is a line, and nothing is wiped."""

    leave: bool | None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg != "":
            print(str(self).rstrip(), file=self.fp, flush=True)
        return False

    def close(self) -> None:
        if self.leave and not self.disable:
            self.leave = False
            self.display()
        super().close()


def bar(**options: Any) -> Any:
    """A progress bar of `tqdm` on stderr; on the first process, unless quiet."""
    kind, interval = (tqdm, DELAY) if _moves() else (_Lines, LINE)
    return kind(**{"mininterval": interval, "disable": level() == QUIET or not _settings["speaks"], **options})


def progress(items: Iterable[Any], name: str, unit: str, total: int | None = None) -> Iterator[Any]:
    """The items behind a bar with the time left, from two seconds on.

    Args:
        items: whatever is worked through.
        name: of the work.
        unit: of an item.
        total: how many there are, where `items` has no length.
    """
    total = len(items) if isinstance(items, Sized) else total
    shown, ended = bar(desc=name, unit=unit, total=total, leave=False, delay=DELAY), threading.Event()
    beat = threading.Thread(target=_beat, args=(shown, ended), daemon=True)
    beat.start()
    try:
        for item in items:
            yield item
            shown.update(1)
    finally:
        ended.set()
        beat.join()
        shown.close()


def _beat(shown: Any, ended: threading.Event) -> None:
    """Keeps the clock of a bar going, however long an item takes: tqdm itself waits for the item to end."""
    wait = DELAY
    while not shown.disable and not ended.wait(wait):
        wait = shown.mininterval
        shown.last_print_t = time.time()  # so that it is wiped in the end
        shown.refresh()


def _moves() -> bool:
    """Whether a line can be written over, as in a terminal and in a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
