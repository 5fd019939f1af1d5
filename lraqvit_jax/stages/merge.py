"""Stage merge: `RUN.trained` -> `RUN`, one pair a layer, the same outputs."""

import jax
import jax.numpy as jnp

from lraqvit_jax.base import console, trees
from lraqvit_jax.devices import sharding
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.plan.records import low_rank
from lraqvit_jax.run.workspace import Workspace

TOLERANCE = 1e-5


def run(ws: Workspace) -> None:
    for name in console.progress([name for name in ws.config.runs if not ws.has(name)], "merge", "run"):
        trained = ws.load(f"{name}.trained", "distill")
        plan = low_rank(ws.plan)
        paths = [path for path, layer in trained.plan.items() if layer.form == "reparam"]
        params = trees.map_layers(reparam.merge, trained.params, paths)
        with sharding.use(ws.mesh):
            batches, _ = ws.calibration(min(64, ws.config.factorize.calibration_images))
            images = sharding.put_batch(next(iter(batches)), ws.mesh)["image"]
            before = jax.jit(trained.model.apply)({"params": trained.params}, images)
            after = jax.jit(ws.create(plan).apply)({"params": params}, images)
            difference = float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before)))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"merging {name} changed its logits by {difference:.1e} relative")
        parent = f"{name}.trained"
        ws.save(name, params, plan, parent=parent, notes=trained.meta["notes"], merge_difference=difference)
