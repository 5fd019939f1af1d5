"""Several processes, one run: how they join, who writes, and mistakes that all of them stop at together."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError, reason

Result = TypeVar("Result")
SENTENCE = 2048
"""Bytes of a sentence that the others are told."""
SILENCE, PATIENCE = 10.0, 300.0
"""Seconds of waiting for the others until this process says so, and until it ends."""


def join(coordinator: str = "", count: int = 0, index: int = -1) -> None:
    """Joins this process to the others of the run; before any other call of JAX.

    Where not all are there after `PATIENCE`, the process ends with code 2: JAX would abort it.

    Args:
        coordinator: "HOST:PORT" of process 0; "" finds everything out from the cluster (TPU pods, SLURM, Kubernetes,
            Open MPI).
        count: of processes, with a coordinator.
        index: of this one, from 0.

    Raises:
        UserError: the arguments do not fit, or no cluster is known here.
    """
    if coordinator and not (":" in coordinator and count > 0 and 0 <= index < count):
        raise UserError(
            f"--coordinator={coordinator} --num_processes={count} --process_id={index} do not fit; give HOST:PORT of "
            "process 0, how many processes there are, and which this is, from 0."
        )
    try:
        with _waiting(f"all {count} processes to join" if coordinator else "the other processes to join"):
            timeout = 2 * int(PATIENCE + SILENCE)
            if coordinator:
                jax.distributed.initialize(coordinator, count, index, initialization_timeout=timeout)
            else:
                jax.distributed.initialize(initialization_timeout=timeout)
        console.speak(is_primary_process())
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"This process cannot join the others ({reason(error)}); on a machine that is not a TPU pod, SLURM or "
            "Kubernetes job give --coordinator, --num_processes and --process_id."
        ) from error


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Says that it waits, and ends the process where that takes too long: the call of JAX does not come back then."""

    def give_up() -> None:
        console.error(
            f"This process waited for {what} for {PATIENCE:.0f} s; start every one with the same number of "
            "processes, and see that they reach the port of the coordinator."
        )
        os._exit(2)

    warning = threading.Timer(SILENCE, lambda: console.warn(f"this process still waits for {what}.", True))
    timers = [warning, threading.Timer(PATIENCE, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def is_primary_process() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def together(action: Callable[[], Result]) -> Result:
    """What `action` returns here, once every process has done it; the mistake of any of them is raised by all.

    Raises:
        UserError: that of the first process that met one.
    """
    if jax.process_count() == 1:
        return action()
    result, sentence = None, b""
    try:
        result = action()
    except UserError as error:
        sentence = str(error).encode()[:SENTENCE]
    sentences = multihost_utils.process_allgather(np.frombuffer(sentence.ljust(SENTENCE, b"\0"), np.uint8))
    for index, padded in enumerate(sentences):
        if text := bytes(padded).rstrip(b"\0").decode(errors="ignore"):
            raise UserError(text if index == 0 else f"Process {index}: {text}")
    return result  # type: ignore[return-value]


def once(action: Callable[[], Any]) -> None:
    """Does `action` on the first process, and waits for it on the others; its mistake is raised by all."""
    together(lambda: action() if is_primary_process() else None)
