"""A function of somebody's, with what it takes to make it small and to measure it."""

import importlib
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lraqvit_jax.base.errors import UserError, nearest, reason, short
from lraqvit_jax.options.function import PREFIX


class Task(NamedTuple):
    """What the function of `--config.model=import:package.module:function` gives.

    Attributes:
        apply: pure, of `params` and a batch.
        params: a tree of arrays.
        batches: to calibrate on; see `trace.compress.compress`.
        evaluate: numbers by name for a function of a batch, such as {"top1": 88.5}, on data of its own; None leaves
            them away.
    """

    apply: Callable[[Any, Any], Any]
    params: Any
    batches: Sequence[Any]
    evaluate: Callable[[Callable[[Any], Any]], Mapping[str, float]] | None = None


def load(name: str) -> Task:
    """The task that "import:package.module:function" names; the current folder is looked into, too.

    Raises:
        UserError: another name, a module or function that is not there or fails, or that gives no task.
    """
    module_name, _, function_name = name.removeprefix(PREFIX).partition(":")
    if not name.startswith(PREFIX) or not module_name or not function_name:
        raise UserError(f"model is {short(repr(name))}; write import:package.module:function, which gives a Task.")
    if (here := str(pathlib.Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's program: anything may come out of it
        raise UserError(f"The module {module_name} of model cannot be imported ({reason(error)}).") from error
    if not callable(function := getattr(module, function_name, None)):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{module_name} has no function {function_name!r}; {nearest(function_name, names)}")
    try:
        made = function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{module_name}:{function_name} fails ({type(error).__name__}: {reason(error)}).") from error
    if not isinstance(made, tuple) or len(made) not in (3, 4) or not callable(made[0]):
        raise UserError(
            f"{module_name}:{function_name} gives {short(repr(made))}; let it give lraqvit_jax.Task(apply, params, "
            "batches)."
        )
    task = Task(*made)
    return task._replace(batches=list(task.batches))
