"""Stage report."""

from lraqvit_jax.workspace import Workspace


def run(ws: Workspace) -> None:
    """Writes report.html."""
