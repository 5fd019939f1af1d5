"""What a run would do, before it does anything."""

from collections.abc import Sequence
from typing import Any

import jax

from lraqvit_jax import weights
from lraqvit_jax.config import Config
from lraqvit_jax.data import class_names
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.sources import ROLES
from lraqvit_jax.devices import sharding
from lraqvit_jax.plan import records as plan
from lraqvit_jax.plan import table
from lraqvit_jax.run import checks, opening, outlook
from lraqvit_jax.stages.evaluate import other_params
from lraqvit_jax.weights import artifacts


def surroundings(ws: Any) -> list[str]:
    """What --verbose says before it all: versions, devices, mesh, plan."""
    versions = ", ".join(f"{name} {version}" for name, version in artifacts.versions().items())
    devices = (
        f"{jax.device_count()} devices, the first {jax.devices()[0].device_kind}, of {jax.process_count()} processes"
    )
    return [versions, devices, mesh_text(ws.mesh), table.table(ws.plan, ws.spec.layers, 0)]


def mesh_text(mesh: Any) -> str:
    return "mesh: " + ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def dry_run(config: Config, workdir: str, chosen: Sequence[str]) -> None:
    """Checks all that a run would, as far as nothing has to be fetched, and prints the plan, its costs, time and files;
    writes nothing.

    Args:
        config: of the run.
        workdir: for it.
        chosen: stages.
    """
    ws = opening.open_workspace(config, workdir, write=False)
    checks.modules(config)
    fetched = [] if not config.weights or weights.local(config.weights) else [f"weights {config.weights}"]
    if config.weights and not fetched and not ws.has("dense"):
        opening.read_weights(config)
    if config.class_names:
        class_names.read(config.class_names, ws.num_classes)
    data = checks.inputs(config, Classes.of(ws.num_classes, ws.class_names, ws.data_names), ROLES, fetch=False)
    if "calibration" in data:
        checks.counts(config, len(data["calibration"]), chosen)
    fetched += [f"data.{role} {config.data.source(role)}" for role in ROLES if role not in data]

    dense = plan.dense(ws.spec.layers)
    abstract = sharding.abstract_params(ws.create(dense), ws.preprocess.size, ws.mesh)
    print(table.table(ws.plan, ws.spec.layers, other_params(abstract, dense)))
    if ws.provisional:
        print(f"Ranks of the uniform ratio; the stage plan chooses by {ws.config.plan.method!r} for this budget.")
    print(mesh_text(ws.mesh))
    print("\n".join(outlook.sentences(ws, data)))
    if fetched:
        print(f"Not looked at, since they may have to be fetched: {', '.join(fetched)}.")
