"""Reads that nobody waits for any more.

Where one array of a checkpoint cannot be read, orbax closes its event loop and leaves the other reads as they are. Each
would print a traceback of its own, at whatever moment Python collects it or the disk answers.
"""

import asyncio
import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def reads() -> Iterator[None]:
    """Around a restore: where it fails, ends what is left on event loops that are closed, and could never go on."""
    hook = sys.unraisablehook
    if getattr(hook, "__module__", None) != __name__:
        sys.unraisablehook = _without_late_answers(hook)
    try:
        yield
    except Exception:  # Answers come late: the hook stays.
        for found in gc.get_objects():
            if issubclass(type(found), asyncio.Future) and found.get_loop().is_closed():  # isinstance asks proxies.
                _end(found)
        raise
    sys.unraisablehook = hook


def is_late_answer(error: BaseException | None) -> bool:
    """Whether a thread found the event loop closed to which it brings an answer."""
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _end(left: "asyncio.Future[Any]") -> None:
    with contextlib.suppress(BaseException):  # What closing a coroutine raises in it is the traceback in question.
        if left.done():
            left.exception()  # asyncio prints one that was never asked for.
        elif isinstance(left, asyncio.Task):
            left._log_destroy_pending = False  # type: ignore[attr-defined]  # As asyncio.gather does.
            left.get_coro().close()


def _without_late_answers(hook: Any) -> Any:
    def unraisable(args: Any) -> None:
        if not is_late_answer(args.exc_value):
            hook(args)

    return unraisable
