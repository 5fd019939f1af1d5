"""One run at a time in a work directory.

The lock is WORKDIR/.lock: a lock of the operating system, gone with the process that holds it however that ends, and
inside it who that is. File systems of several machines may not share such locks. There the file itself is the lock: the
holder writes to it every `BEAT` seconds, and who finds the name of another machine in it watches for `PATIENCE` seconds
whether it still does. No clocks are compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import processes

BEAT, PATIENCE = 10.0, 30.0


@contextlib.contextmanager
def hold(directory: str | pathlib.Path) -> Iterator[None]:
    """Holds the lock of a work directory, which is made if missing, and goes again if nothing was written to it.

    Raises:
        UserError: another run holds it, it is a file, or it cannot be written.
    """
    directory = files.locate_new(directory)
    path, made = directory / ".lock", not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"The work directory {directory} cannot be written ({error}); name another.") from error
    with file:
        locked = _lock(file)
        holder = _read(path)
        if locked is False or (locked is None and _lives(holder)) or _beats(path, holder):
            raise UserError(
                f"{directory} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}; wait for it, "
                "stop it, or name another work directory."
            )
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
        _write(path, 0)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            with contextlib.suppress(OSError):
                os.truncate(path, 0)
                if made and [entry.name for entry in directory.iterdir()] == [path.name]:
                    path.unlink()
                    directory.rmdir()


def _lock(file: Any) -> bool | None:
    """Whether this process has the lock now; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Who wrote the lock last; {} where nobody is named."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _write(path: pathlib.Path, beats: int) -> None:
    """In place, since the lock belongs to the file: a rename would bring another."""
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "beats": beats}))


def _beat(path: pathlib.Path, ended: threading.Event) -> None:
    beats = 0
    while not ended.wait(BEAT):
        beats += 1
        with contextlib.suppress(OSError):  # A full disk is for the run to report, not for its lock.
            _write(path, beats)


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that still runs."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return holder["pid"] != os.getpid()


def _beats(path: pathlib.Path, holder: dict[str, Any]) -> bool:
    """Whether a holder on another machine writes to the lock within `PATIENCE`."""
    if holder.get("host") in (None, socket.gethostname()):
        return False
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(1)
        now = _read(path)
        if now and now != holder:
            return True
    return False


@contextlib.contextmanager
def alone(directory: str | pathlib.Path) -> Iterator[None]:
    """Holds the lock of a work directory for all processes of this run; see `hold`."""
    with contextlib.ExitStack() as stack:
        processes.once(lambda: stack.enter_context(hold(directory)))
        yield
