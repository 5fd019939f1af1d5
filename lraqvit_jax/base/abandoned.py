"""Reads that nobody waits for any more.

Orbax (0.12.8, by its V1 API as by V0) runs a load in an event loop of its own. Where one array cannot be read, it
closes that loop and leaves the other reads as they are, on purpose: asyncio's way to cancel what is left is not safe
with several threads (its `asyncio_utils._run_sync_via_new_loop`). Each read would print a traceback of its own, at
whatever moment Python collects it or the disk answers: hundreds for a model of some hundred arrays, and among them the
one sentence that tells the user what to do.
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
        for future in gc.get_objects():
            if issubclass(type(future), asyncio.Future) and future.get_loop().is_closed():  # isinstance asks proxies.
                _end(future)
        raise
    sys.unraisablehook = hook


def is_late_answer(error: BaseException | None) -> bool:
    """Whether a thread found the event loop closed to which it brings an answer."""
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _end(future: "asyncio.Future[Any]") -> None:
    with contextlib.suppress(BaseException):  # What closing a coroutine raises in it is the traceback in question.
        if future.done():
            future.exception()  # asyncio prints one that was never asked for.
        elif isinstance(future, asyncio.Task):
            future._log_destroy_pending = False  # type: ignore[attr-defined]  # As asyncio.gather does.
            future.get_coro().close()


def _without_late_answers(hook: Any) -> Any:
    def unraisable(args: Any) -> None:
        if not is_late_answer(args.exc_value):
            hook(args)

    return unraisable
