"""Stage factorize: low-rank pairs from the dense model.

Writes the untrained rows `lra` (truncated SVD) and `lra_NAME` (other decompositions), and for every run of the ladder
its starting point `RUN.start`, in reparam form.
"""

import zlib
from typing import Any

import numpy as np

from lraqvit_jax import checkpoint, statistics, trees
from lraqvit_jax import plan as plan_lib
from lraqvit_jax.lowrank import decomposition, reparam, svd
from lraqvit_jax.workspace import Workspace


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
    moments: dict[str, np.ndarray] = {}
    drawn: list[int] = []
    if any(decomposition(name).NEEDS_MOMENT for name in names):
        batches, drawn = ws.calibration(ws.config["factorize"]["calibration_images"])
        layers = [info for info in ws.spec.layers if info.path in ranks]
        moments = statistics.second_moments(dense.model, dense.params, layers, batches, ws.mesh)
    kernels = {path: trees.get(params, path)["kernel"] for path in ranks}
    pairs = {
        name: {
            path: decomposition(name).decompose(kernel, ranks[path], moment=moments.get(path))
            for path, kernel in kernels.items()
        }
        for name in sorted(names)
    }
    for name in missing:
        changes = {path: _layer(params, path, *pair) for path, pair in pairs[name].items()}
        ws.save(
            row_name(name),
            trees.replace(params, changes),
            plan,
            parent="dense",
            notes=f"{name}, no training",
            calibration=drawn,
        )
    spectra = {path: svd.spectrum(kernel) for path, kernel in kernels.items()} if wanted else {}
    for name in wanted:
        options, changes = runs[name], {}
        for path, pair in pairs[options["decomposition"]].items():
            rng = np.random.default_rng((ws.config["seed"], zlib.crc32(path.encode())))
            branch = reparam.branch(options["branch"], spectra[path], ranks[path], rng)
            changes[path] = _layer(params, path, *pair, du=branch.u, dv=branch.v)
        ws.save(
            f"{name}.start",
            trees.replace(params, changes),
            plan_lib.low_rank(ws.plan, "reparam"),
            parent="dense",
            notes=f"{options['decomposition']}, branch {options['branch']}",
            calibration=drawn,
        )


def _layer(params: Any, path: str, u: Any, v: Any, **branch: Any) -> dict[str, Any]:
    factors = {"u": u, "v": v, **branch}
    return {name: np.asarray(value, np.float32) for name, value in factors.items()} | {
        "bias": trees.get(params, path)["bias"]
    }
