"""Stage report: `WORKDIR/report.html`. What takes weights or images is computed here and kept in `WORKDIR/report/`, so
that `python -m lraqvit_jax.report` makes the page again from the work directory alone."""

from collections.abc import Callable

import numpy as np

from lraqvit_jax.base import console, files, trees
from lraqvit_jax.devices import processes
from lraqvit_jax.lowrank import spectra
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact


def run(ws: Workspace) -> None:
    """UserError where there is no result yet."""
    dense = artifacts.load_artifact(ws.path("dense")) if ws.has("dense") else None
    processes.once(lambda: _write(ws, dense))


def _write(ws: Workspace, dense: Artifact | None) -> None:
    from lraqvit_jax.report import examples, page, read  # matplotlib takes a second to import

    read.run(ws.directory)  # Says what is missing before anything is computed.
    (ws.directory / "report").mkdir(exist_ok=True)
    target = ws.directory / "report.html"
    parts: list[Callable[[], None]] = [
        lambda: _keep_spectra(ws, dense),
        lambda: examples.write(ws),
        lambda: files.write_atomically(target, page.one(read.run(ws.directory))),
    ]
    for make in console.progress(parts, "report", "part"):
        make()
    console.say(target)


def _keep_spectra(ws: Workspace, dense: Artifact | None) -> None:
    """Writes the singular values of every factorized kernel, by layer, to report/spectra.npz."""
    paths = [path for path, layer in ws.plan.items() if layer.rank]
    if dense is None or not paths:
        return
    params = dense.params
    spectrum = spectra.memo(ws.config.cache_dir)
    values = spectra.each(lambda path: spectrum(np.asarray(trees.get(params, path)["kernel"])).values, paths, "spectra")
    named = {path: np.asarray(singular_values, np.float32) for path, singular_values in zip(paths, values, strict=True)}
    files.write_arrays(ws.directory / "report" / "spectra.npz", named)
