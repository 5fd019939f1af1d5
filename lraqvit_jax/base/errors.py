"""Errors that are the user's to mend, and how a name that matches nothing is answered."""

import difflib
import errno
import operator
import os
from collections.abc import Iterable
from typing import Any

FEW = 20
LONGEST = 4000


class UserError(Exception):
    """Bad input. The message is one sentence that names the thing and the mend; `main` exits with code 2."""

    def __init__(self, message: str) -> None:
        """Names that others wrote may have line breaks or no end: the message stays one line of LONGEST."""
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


class Preempted(BaseException):
    """The run was asked to stop, and has saved what it had; `main` exits with `exit_code`.

    No `Exception`, as KeyboardInterrupt is none: SIGTERM raises it anywhere, and who handles whatever can go wrong in a
    file must not take it for damage.
    """

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: run the same command again."""


def nearest(name: object, names: Iterable[str]) -> str:
    """Returns the tail of an error message: the nearest known name, and all of them where they are few."""
    names = sorted(names)
    close = difflib.get_close_matches(short(str(name)), names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else ""
    if len(names) > FEW and close:
        return hint
    return f"{hint} Known: {', '.join(names)}.".strip()


def short(text: str, limit: int = 120) -> str:
    """Text that others wrote, fit for a sentence: printable, on one line, the middle of what is long left out."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: 4 * limit])
    return text if len(text) <= limit else f"{text[: limit - 23]}...{text[-20:]}"


def whole_number(value: Any, name: str, low: int = 1) -> int:
    """The value as Python's whole number; UserError, which calls it `name`, for anything else or less than `low`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low:
        raise UserError(f"{name} is {short(repr(value))}; give a whole number from {low}.")
    return number


def reason(error: BaseException) -> str:
    """What an error says, or else its kind, fit for a sentence."""
    return short(str(error) or type(error).__name__)


STORAGE = {errno.ENOSPC: "is full", errno.EDQUOT: "has no quota left", errno.EFBIG: "takes no file of that size"}
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def storage(error: BaseException) -> str:
    """The sentence for an error of the disk, anywhere in a chain of exceptions; "" for any other error.

    Libraries in C++ tell of such errors in words alone.
    """
    seen: BaseException | None = error
    while seen is not None:
        words = str(seen)
        for number, what in STORAGE.items():
            if getattr(seen, "errno", None) == number or os.strerror(number) in words:
                return f"The disk {what} ({short(words)}); make room and run the same command again."
        for number in READ_ONLY:
            if getattr(seen, "errno", None) == number or os.strerror(number) in words:
                return f"The disk cannot be written ({short(words)}); name another work directory, or mend its rights."
        seen = seen.__cause__ or seen.__context__
    return ""
