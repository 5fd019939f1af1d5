"""Stage factorize: low-rank pairs from the dense model.

Writes the untrained rows `lra` (truncated SVD) and `lra_NAME` (other decompositions), and for every run of the ladder
its starting point `RUN.start`, in reparam form.
"""

import functools
import inspect
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from lraqvit_jax import checkpoint, statistics, trees
from lraqvit_jax import plan as plan_lib
from lraqvit_jax.lowrank import decomposition, reparam, spectra, svd
from lraqvit_jax.workspace import Workspace


class Factors(NamedTuple):
    """What one layer can be made of, float32: {u, v} by decomposition, {du, dv} by branch initialization."""

    pairs: dict[str, dict[str, np.ndarray]]
    branches: dict[str, dict[str, np.ndarray]]


def row_name(name: str) -> str:
    """Name of the untrained row of a decomposition: `lra` for the paper's, truncated SVD."""
    return "lra" if name == "svd" else f"lra_{name}"


def run(ws: Workspace) -> None:
    baselines, runs = ws.config["factorize"]["baselines"], ws.config["runs"]
    missing = [name for name in baselines if not ws.has(row_name(name))]
    wanted = [name for name in runs if not any(ws.has(f"{name}{end}") for end in (".start", ".trained", ""))]
    if not missing and not wanted:
        return
    dense = ws.load("dense", "teacher")
    params, plan = checkpoint.host(dense.params), plan_lib.low_rank(ws.plan)
    ranks = {path: layer.rank for path, layer in plan.items() if layer.rank}
    names = {*missing, *(runs[name]["decomposition"] for name in wanted)}
    branches = {runs[name]["branch"] for name in wanted}
    moments: dict[str, np.ndarray] = {}
    drawn: list[int] = []
    if any(decomposition(name).NEEDS_MOMENT for name in names):
        batches, drawn = ws.calibration(ws.config["factorize"]["calibration_images"])
        layers = [info for info in ws.spec.layers if info.path in ranks]
        moments = statistics.second_moments(dense.model, dense.params, layers, batches, ws.mesh)
    spectrum = spectra.memo(ws.config["cache_dir"])

    def compress(path: str) -> Factors:
        kernel, moment = trees.get(params, path)["kernel"], moments.pop(path, None)
        seed = (ws.config["seed"], zlib.crc32(path.encode()))
        return _factors(kernel, ranks[path], moment, names, branches, spectrum, seed)

    factors = dict(zip(ranks, spectra.each(compress, ranks), strict=True))
    for name in missing:
        changes = {path: _layer(params, path, found.pairs[name]) for path, found in factors.items()}
        ws.save(
            row_name(name),
            trees.replace(params, changes),
            plan,
            parent="dense",
            notes=f"{name}, no training",
            calibration=drawn,
        )
    for name in wanted:
        pair, branch = runs[name]["decomposition"], runs[name]["branch"]
        changes = {
            path: _layer(params, path, found.pairs[pair] | found.branches[branch]) for path, found in factors.items()
        }
        ws.save(
            f"{name}.start",
            trees.replace(params, changes),
            plan_lib.low_rank(ws.plan, "reparam"),
            parent="dense",
            notes=f"{pair}, branch {branch}",
            calibration=drawn,
        )


def _factors(
    kernel: np.ndarray,
    rank: int,
    moment: np.ndarray | None,
    names: Iterable[str],
    branches: Iterable[str],
    spectrum: Callable[[np.ndarray], svd.Spectrum],
    seed: tuple[int, int],
) -> Factors:
    """One layer by every decomposition and branch asked for. Its SVD, which they share, is held no longer than this."""
    kernel = np.asarray(kernel, np.float64)
    own = functools.cache(lambda: spectrum(kernel))

    def shared(matrix: np.ndarray) -> svd.Spectrum:
        return own() if matrix is kernel else spectrum(matrix)

    found = Factors({}, {})
    for name in names:
        decompose = decomposition(name).decompose
        options = {"spectrum": shared} if "spectrum" in inspect.signature(decompose).parameters else {}
        u, v = decompose(kernel, rank, moment=moment, **options)
        found.pairs[name] = {"u": u.astype(np.float32), "v": v.astype(np.float32)}
    for name in branches:
        du, dv = reparam.branch(name, own(), rank, np.random.default_rng(seed))
        found.branches[name] = {"du": du.astype(np.float32), "dv": dv.astype(np.float32)}
    return found


def _layer(params: Any, path: str, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a layer with these factors; its bias, where it has one, stays."""
    return factors | {name: value for name, value in trees.get(params, path).items() if name == "bias"}
