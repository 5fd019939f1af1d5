"""Stage factorize: low-rank pairs from the dense model.

Writes the untrained rows `lra` (truncated SVD) and `lra_NAME` (other decompositions), and for every run of the ladder
its starting point `RUN.start`, in the form it trains in.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank import block, decomposition, gauge, reparam, spectra
from lraqvit_jax.lowrank.pairs import Layer, Spectrum, pair
from lraqvit_jax.options.training import Run
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact


def run(ws: Workspace) -> Workspace:
    """Makes what is missing; gives back the workspace without the moments, which are needed no more."""
    baselines = {row: name for row, name in ws.config.factorize.rows.items() if not ws.has(row)}
    runs = {
        name: run
        for name, run in ws.config.runs.items()
        if not any(ws.has(f"{name}{end}") for end in (".start", ".trained", ""))
    }
    if baselines or runs:
        if ws.provisional:
            raise UserError(f"The ranks of {ws.directory} are not chosen yet; run --stages=plan first.")
        _write(ws, baselines, runs)
    return dataclasses.replace(ws, moments={})


def _write(ws: Workspace, baselines: Mapping[str, str], runs: Mapping[str, Run]) -> None:
    """The artefacts of baselines, each the name of a decomposition, and the starts of runs."""
    dense = ws.load("dense", "teacher")
    ranks = {path: layer.rank for path, layer in ws.plan.items() if layer.rank}
    names = {*baselines.values(), *(run.decomposition for run in runs.values())}
    spectrum = spectra.memo(ws.config.cache_dir)
    params, moments, drawn = narrowed(ws, dense)
    layers, drawn_for_pairs = pairs(ws, dense, ranks, names, spectrum, moments, params)
    drawn = drawn or drawn_for_pairs
    branches = _branches(params, ranks, {run.branch for run in runs.values()}, ws.config.seed, spectrum)
    for row, name in baselines.items():
        plan, notes = plan_lib.merged(ws.plan), f"{name}, no training"
        small, _ = gauge.fix(trees.replace(params, layers[name]), plan, plan_lib.resolved(ws.spec.layers, plan))
        ws.save(row, small, plan, parent="dense", notes=notes, calibration=drawn)
    for name, run in runs.items():
        changes = {
            path: layer | branches[path].get(run.branch, {}) for path, layer in layers[run.decomposition].items()
        }
        ws.save(
            f"{name}.start",
            trees.replace(params, changes),
            plan_lib.low_rank(ws.plan, reparam.form(run.branch)),
            parent="dense",
            notes=f"{run.decomposition}, branch {run.branch}",
            calibration=drawn,
        )


def narrowed(ws: Workspace, dense: Artifact) -> tuple[Any, Mapping[str, Moments], list[int]]:
    """The dense model with the channels of heads and the hidden units that the plan leaves, its layers named as in the
    plan; the moments of its layers as far as they are known; and the calibration images that were drawn for that."""
    params, encoder = artifacts.host(dense.params), [info for info in ws.spec.layers if info.compressible]
    changed = blocks.narrowed(encoder, ws.plan)
    if not changed:
        return params, ws.moments, []
    inside = {info.path for part in changed for info in (*part.attention, *part.mlp)}
    layers_of_plan = [info for info in encoder if info.path in inside or ws.plan[info.path].rank]
    moments, drawn = _measured(ws, dense, layers_of_plan, ws.moments, gradients=True)
    narrow_moments = dict(moments)
    for path, solved in block.solve(changed, params, moments).items():
        small, of_layers = solved.narrowed(blocks.sizes_of(solved.block, ws.plan))
        narrow_moments |= {f"{path}/{name}": value for name, value in of_layers.items()}
        gone = [f"{path}/attn/qkv"] if "attn/query" in small else []
        layers = {f"{path}/{name}": _rounded(layer) for name, layer in small.items()}
        params = trees.without(trees.replace(params, layers), gone)
    return params, narrow_moments, drawn


def _measured(
    ws: Workspace, dense: Artifact, layers: list[LinearInfo], moments: Mapping[str, Moments], gradients: bool
) -> tuple[Mapping[str, Moments], list[int]]:
    """The moments of the layers, measured anew where some are missing or lack the gradients; and the calibration images
    that they are of."""
    batches, drawn = ws.calibration(ws.config.factorize.calibration_images)
    missing = any(info.path not in moments or (gradients and moments[info.path].gradient is None) for info in layers)
    if missing:
        moments = statistics.moments(dense.model, dense.params, layers, batches, ws.mesh, gradients, ws.config.seed)
    return moments, drawn


def _rounded(layer: Mapping[str, np.ndarray]) -> Layer:
    return {name: np.asarray(value, np.float32) for name, value in layer.items()}


def _branches(
    params: Any, ranks: Mapping[str, int], names: Iterable[str], seed: int, spectrum: Spectrum
) -> dict[str, dict[str, Layer]]:
    """Every layer's branches {du, dv} by initialization, float32; "none" has no branch."""
    initializations = sorted({*names} & {*reparam.INITIALIZATIONS})

    def of_layer(path: str) -> dict[str, Layer]:
        kernel, draw = trees.get(params, path)["kernel"], (seed, zlib.crc32(path.encode()))
        made = {
            name: reparam.branch(name, kernel, ranks[path], np.random.default_rng(draw), spectrum)
            for name in initializations
        }
        return {name: {"du": pair.u.astype(np.float32), "dv": pair.v.astype(np.float32)} for name, pair in made.items()}

    return dict(zip(ranks, spectra.each(of_layer, ranks, "branches"), strict=True))


def pairs(
    ws: Workspace,
    dense: Artifact,
    ranks: Mapping[str, int],
    names: Iterable[str],
    spectrum: Spectrum,
    moments: Mapping[str, Moments] | None = None,
    params: Any = None,
) -> tuple[dict[str, dict[str, Layer]], list[int]]:
    """Every layer with a rank, by every decomposition: {decomposition: {path: {u, v, bias}}}, float32.

    Args:
        ws: for its calibration images and mesh.
        dense: what is decomposed.
        ranks: by path.
        names: of the decompositions.
        spectrum: computes SVDs, or remembers them.
        moments: where they are known already. Without the gradients that a name wants, they are taken again.
        params: whose layers are decomposed, where they are not the dense model's: what `narrowed` gives.

    Raises:
        UserError: a decomposition that solves layer after layer, of layers that are not the dense model's.

    Returns:
        The layers, and the calibration images that were drawn; none where no decomposition wants them.
    """
    params = artifacts.host(dense.params) if params is None else params
    layers = [info for info in ws.spec.layers if ranks.get(info.path)]
    wants = {name: decomposition(name).STATISTICS for name in sorted(names)}
    images = ws.config.factorize.calibration_images
    layer_moments, drawn = dict(moments or {}), list[int]()
    if {"inputs", "gradients"} & {*wants.values()}:
        measured, drawn = _measured(ws, dense, layers, layer_moments, "gradients" in wants.values())
        layer_moments = dict(measured)
    single = [name for name, kind in wants.items() if kind != "sequential"]
    if len(single) < len(wants) and blocks.narrowed([info for info in ws.spec.layers if info.compressible], ws.plan):
        name = next(name for name, kind in wants.items() if kind == "sequential")
        raise UserError(
            f"{name} solves the layers of the dense model in turn, and the plan has others; use weighted_kfac."
        )

    def of_layer(path: str) -> dict[str, Layer]:
        known_moments = layer_moments.pop(path, None)
        return {name: pair(name, trees.get(params, path), ranks[path], known_moments, spectrum) for name in single}

    paths = [info.path for info in layers]
    by_path = dict(zip(paths, spectra.each(of_layer, paths, "pairs"), strict=True))
    layers_by_name = {name: {path: by_path[path][name] for path in paths} for name in single}
    for name in (name for name, kind in wants.items() if kind == "sequential"):
        batches, drawn = ws.calibration(images)
        layers_by_name[name] = {}

        def solve(path: str, moments: Moments, name: str = name) -> Layer:
            layer = layers_by_name[name][path] = pair(name, trees.get(params, path), ranks[path], moments, spectrum)
            return {"kernel": layer["u"] @ layer["v"]} | {key: layer[key] for key in layer if key == "bias"}

        statistics.sequential(dense.model, dense.params, layers, batches, ws.mesh, solve)
    return layers_by_name, drawn
