"""How a command starts: with huge pages for malloc, and with threads that leave errors of the disk to the main one."""

import os
import pathlib
import signal
import sys
import threading
from typing import Any

from absl import logging

from lraqvit_jax.base import abandoned, early
from lraqvit_jax.base.errors import storage

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Of glibc's malloc, as GLIBC_TUNABLES asks for them."""


def use_huge_pages() -> None:
    """Starts this process over with huge pages for malloc, where Linux gives them only on request.

    XLA's CPU backend maps its buffers anew at every step; page faults are a third of the time of a step on 2 cores.
    glibc reads the setting when a process starts. A GLIBC_TUNABLES of the user's stands.
    """
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" not in os.environ and setting.is_file() and "[madvise]" in setting.read_text():
        environment = os.environ | {"GLIBC_TUNABLES": HUGE_PAGES}
        signal.pthread_sigmask(signal.SIG_BLOCK, early.SENTENCES)  # until `early` is there again
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def quiet_threads() -> None:
    """Leaves an error of the disk to the main thread, which says it in one sentence: threads that write checkpoints
    would each print a traceback of it, and others of the event loop that it closes."""

    def is_told_elsewhere(error: BaseException | None) -> bool:
        return error is not None and (bool(storage(error)) or abandoned.is_late_answer(error))

    def from_thread(args: threading.ExceptHookArgs) -> None:
        if not is_told_elsewhere(args.exc_value):
            threading.__excepthook__(args)

    def unraisable(args: Any) -> None:
        if not is_told_elsewhere(args.exc_value):
            sys.__unraisablehook__(args)

    threading.excepthook, sys.unraisablehook = from_thread, unraisable
    logging.get_absl_handler().addFilter(lambda record: not (record.exc_info and is_told_elsewhere(record.exc_info[1])))
