"""SIGTERM, the notice before a machine is taken away: training saves where it is, everything else stops at once; and
Ctrl-C, which stops at once, or as soon as somebody asks: a library that was interrupted may have kept it for itself.

What stages have finished is whole on disk in either case, and the same command goes on from there.
"""

import contextlib
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from lraqvit_jax.base.errors import Preempted

_state = {"noticed": False, "deferred": False, "interrupted": False}
_asked = itertools.count(1)


def watch() -> None:
    """From now on SIGTERM raises `Preempted` in the main thread, or is kept for `reached` inside `deferred`.

    Several processes leave SIGTERM to JAX, whose handler tells all of them: see `reached`.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _notice)


def _notice(*_: Any) -> None:
    _state["noticed"] = True
    if not _state["deferred"]:
        raise Preempted("Stopped by SIGTERM; run the same command again to go on.")


def _interrupt(*_: Any) -> None:
    _state["interrupted"] = True
    raise KeyboardInterrupt


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets a loop that asks `reached` choose the moment to stop."""
    _state["deferred"] = True
    try:
        yield
    finally:
        _state["deferred"] = False


def reached() -> bool:
    """Whether to save and stop now. Several processes must all ask, at the same points of the run: they are told yes at
    the same one, whichever of them got the notice. KeyboardInterrupt where there was one that came to nothing."""
    if _state["interrupted"]:
        raise KeyboardInterrupt
    if jax.process_count() == 1:
        return _state["noticed"]
    return multihost_utils.reached_preemption_sync_point(next(_asked))


def stop_if_reached() -> None:
    """Raises `Preempted` where it is time to."""
    if reached():
        raise Preempted("Stopped by SIGTERM; run the same command again to go on.")
