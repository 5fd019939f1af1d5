"""Stages: glue between the algorithms and the work directory. Each is a module with `run(workspace)`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lraqvit_jax.run.workspace import Workspace


def run(ws: "Workspace", name: str) -> "Workspace":
    """Runs one stage; what it gives back is the workspace for those that follow."""
    return importlib.import_module(f"{__name__}.{name}").run(ws) or ws
