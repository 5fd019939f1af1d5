"""Stage factorize: low-rank pairs from the dense model.

Writes the untrained rows `lra` (truncated SVD) and `lra_NAME` (other decompositions), and for every run of the ladder
its starting point `RUN.start`, in the form it trains in.
"""

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank import decomposition, reparam, spectra, svd
from lraqvit_jax.lowrank.bias import bias_shift
from lraqvit_jax.plan.records import low_rank
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact

Layer = dict[str, np.ndarray]
Spectrum = Callable[[np.ndarray], svd.Spectrum]


def row_name(name: str) -> str:
    """Name of the untrained row of a decomposition: `lra` for the paper's, truncated SVD."""
    return "lra" if name == "svd" else f"lra_{name}"


def run(ws: Workspace) -> Workspace:
    baselines, runs = ws.config["factorize"]["baselines"], ws.config["runs"]
    missing = [name for name in baselines if not ws.has(row_name(name))]
    wanted = [name for name in runs if not any(ws.has(f"{name}{end}") for end in (".start", ".trained", ""))]
    if not missing and not wanted:
        return dataclasses.replace(ws, moments={})
    if ws.provisional:
        raise UserError(f"The ranks of {ws.directory} are not chosen yet; run --stages=plan first.")
    dense = ws.load("dense", "teacher")
    params, plan = artifacts.host(dense.params), low_rank(ws.plan)
    ranks = {path: layer.rank for path, layer in plan.items() if layer.rank}
    names = {*missing, *(runs[name]["decomposition"] for name in wanted)}
    branches = {runs[name]["branch"] for name in wanted} & {*reparam.INITIALIZATIONS}
    spectrum = spectra.memo(ws.config["cache_dir"])
    found, drawn = pairs(ws, dense, ranks, names, spectrum, ws.moments)

    def branch(path: str) -> dict[str, dict[str, np.ndarray]]:
        kernel = trees.get(params, path)["kernel"]
        seed = (ws.config["seed"], zlib.crc32(path.encode()))
        made = {
            name: reparam.branch(name, kernel, ranks[path], np.random.default_rng(seed), spectrum) for name in branches
        }
        return {name: {"du": one.u.astype(np.float32), "dv": one.v.astype(np.float32)} for name, one in made.items()}

    started = dict(zip(ranks, spectra.each(branch, ranks, "branches"), strict=True))
    for name in missing:
        ws.save(
            row_name(name),
            trees.replace(params, found[name]),
            plan,
            parent="dense",
            notes=f"{name}, no training",
            calibration=drawn,
        )
    for name in wanted:
        method, initialization = runs[name]["decomposition"], runs[name]["branch"]
        changes = {path: layer | started[path].get(initialization, {}) for path, layer in found[method].items()}
        ws.save(
            f"{name}.start",
            trees.replace(params, changes),
            low_rank(ws.plan, reparam.form(initialization)),
            parent="dense",
            notes=f"{method}, branch {initialization}",
            calibration=drawn,
        )
    return dataclasses.replace(ws, moments={})


def pairs(
    ws: Workspace,
    dense: Artifact,
    ranks: Mapping[str, int],
    names: Iterable[str],
    spectrum: Spectrum,
    moments: Mapping[str, Moments] | None = None,
) -> tuple[dict[str, dict[str, Layer]], list[int]]:
    """Every layer with a rank, by every decomposition: {decomposition: {path: {u, v, bias}}}, float32.

    Args:
        ws: for its calibration images and mesh.
        dense: what is decomposed.
        ranks: by path.
        names: of the decompositions.
        spectrum: computes SVDs, or remembers them.
        moments: where they are known already. Without the gradients that a name wants, they are taken again.

    Returns:
        The layers, and the calibration images that were drawn; none where no decomposition wants them.
    """
    params = artifacts.host(dense.params)
    layers = [info for info in ws.spec.layers if ranks.get(info.path)]
    wants = {name: decomposition(name).STATISTICS for name in sorted(names)}
    images = ws.config["factorize"]["calibration_images"]
    known = dict(moments or {})
    drawn: list[int] = []
    if {"inputs", "gradients"} & {*wants.values()}:
        batches, drawn = ws.calibration(images)
        gradients, seed = "gradients" in wants.values(), ws.config["seed"]
        if not known or (gradients and any(one.gradient is None for one in known.values())):
            known = statistics.moments(dense.model, dense.params, layers, batches, ws.mesh, gradients, seed)
    single = [name for name, kind in wants.items() if kind != "sequential"]

    def each(path: str) -> dict[str, Layer]:
        mine = known.pop(path, None)
        return {name: pair(name, trees.get(params, path), ranks[path], mine, spectrum) for name in single}

    paths = [info.path for info in layers]
    by_path = dict(zip(paths, spectra.each(each, paths, "pairs"), strict=True))
    found = {name: {path: by_path[path][name] for path in paths} for name in single}
    for name in (name for name, kind in wants.items() if kind == "sequential"):
        batches, drawn = ws.calibration(images)
        found[name] = {}

        def solve(path: str, moments: Moments, name: str = name) -> Layer:
            layer = found[name][path] = pair(name, trees.get(params, path), ranks[path], moments, spectrum)
            return {"kernel": layer["u"] @ layer["v"]} | {key: layer[key] for key in layer if key == "bias"}

        statistics.sequential(dense.model, dense.params, layers, batches, ws.mesh, solve)
    return found, drawn


def pair(name: str, layer: Layer, rank: int, moments: Moments | None, spectrum: Spectrum = svd.spectrum) -> Layer:
    """One dense layer {kernel, bias} as a pair {u, v, bias}, float32; a layer without a bias stays without.

    Args:
        name: of the decomposition.
        layer: dense.
        rank: of the pair.
        moments: what the decomposition wants; see `lowrank.decomposition`.
        spectrum: computes the SVD, or remembers it.
    """
    module, kernel = decomposition(name), np.asarray(layer["kernel"], np.float64)
    options = {"spectrum": spectrum} if "spectrum" in inspect.signature(module.decompose).parameters else {}
    made = module.decompose(kernel, rank, moments, **options)
    found = {"u": made.u.astype(np.float32), "v": made.v.astype(np.float32)}
    if "bias" in layer:
        shift = bias_shift(kernel, made, moments) if module.CORRECTS_BIAS and moments is not None else 0
        found["bias"] = np.asarray(layer["bias"] + shift, np.float32)
    return found
