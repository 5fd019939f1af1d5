"""Several processes, one run: how they join, who writes, and mistakes that all of them stop at together."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lraqvit_jax import lock
from lraqvit_jax.errors import UserError, reason

Result = TypeVar("Result")
SENTENCE = 2048
"""Bytes of a sentence that the others are told."""


def join(coordinator: str = "", count: int = 0, index: int = -1) -> None:
    """Joins this process to the others of the run; before any other call of JAX.

    Args:
        coordinator: "HOST:PORT" of process 0; "" finds everything out from the cluster (TPU pods, SLURM, Kubernetes,
            Open MPI).
        count: of processes, with a coordinator.
        index: of this one, from 0.

    Raises:
        UserError: the arguments do not fit, no cluster is known here, or the others do not come.
    """
    if coordinator and not (":" in coordinator and count > 0 and 0 <= index < count):
        raise UserError(
            f"--coordinator={coordinator} --num_processes={count} --process_id={index} do not fit; give HOST:PORT of "
            "process 0, how many processes there are, and which this is, from 0."
        )
    try:
        if coordinator:
            jax.distributed.initialize(coordinator, count, index)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"This process cannot join the others ({reason(error)}); on a machine that is no TPU pod, SLURM or "
            "Kubernetes job give --coordinator, --num_processes and --process_id."
        ) from error


def first() -> bool:
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
    told = multihost_utils.process_allgather(np.frombuffer(sentence.ljust(SENTENCE, b"\0"), np.uint8))
    met = [(index, bytes(one).rstrip(b"\0").decode(errors="ignore")) for index, one in enumerate(told)]
    for index, text in met:
        if text:
            raise UserError(text if index == 0 else f"Process {index}: {text}")
    return result  # type: ignore[return-value]


def once(action: Callable[[], Any]) -> None:
    """Does `action` on the first process, and waits for it on the others; its mistake is raised by all."""
    together(lambda: action() if first() else None)


@contextlib.contextmanager
def alone(directory: str | pathlib.Path) -> Iterator[None]:
    """Holds the lock of a work directory for all processes of this run; see `lock.hold`."""
    with contextlib.ExitStack() as stack:
        once(lambda: stack.enter_context(lock.hold(pathlib.Path(directory))))
        yield
