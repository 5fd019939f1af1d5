"""Imported first of all: what stops a command while it is still being imported is one sentence, as later.

Python raises KeyboardInterrupt wherever it is, also inside of imports, some of which take it for an error of their own;
and SIGTERM kills without a word. Until `over`, nothing has been written, and the process may end at once.
"""

import os
import pathlib
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

SENTENCES = {
    signal.SIGINT: (130, "Interrupted before anything was written; run the same command again."),
    signal.SIGTERM: (75, "Stopped by SIGTERM before anything was written; run the same command again."),
}


COMMAND = re.compile(r"lraqvit_jax([.][a-z]\w*)*")


def is_command(argv: Sequence[str]) -> bool:
    """Whether the command line of a process is one of our commands, and not a program that imports us."""
    if "-m" in argv:
        return bool(COMMAND.fullmatch([*argv, ""][argv.index("-m") + 1]))
    return any(re.fullmatch("lraqvit_jax(-[a-z]+)?", pathlib.PurePath(word).name) for word in argv[1:2])


def _stop(number: int, _: Any) -> NoReturn:
    code, sentence = SENTENCES[signal.Signals(number)]
    os.write(2, f"error: {sentence}\n".encode())
    os._exit(code)


def over() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again, if this module changed that."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if is_command(sys.orig_argv):
    for kind in SENTENCES:
        if signal.getsignal(kind) not in (signal.SIG_IGN, None):
            signal.signal(kind, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENTENCES)  # see `startup.use_huge_pages`
