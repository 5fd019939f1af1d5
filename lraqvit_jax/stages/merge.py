"""Stage merge: `RUN.trained` -> `RUN`, one pair a layer, the same outputs."""

import jax
import jax.numpy as jnp

from lraqvit_jax.base import console, trees
from lraqvit_jax.devices import sharding
from lraqvit_jax.lowrank import gauge, reparam
from lraqvit_jax.plan import records
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts

TOLERANCE = 1e-5


def run(ws: Workspace) -> None:
    for name in console.progress([name for name in ws.config.runs if not ws.has(name)], "merge", "run"):
        trained = ws.load(f"{name}.trained", "distill")
        plan = records.merged(ws.plan)
        paths = [path for path, layer in trained.plan.items() if layer.form == "reparam"]
        params = trees.map_layers(reparam.merge, trained.params, paths)
        coefficient = 0.0
        if any(layer.basis for layer in plan.values()):
            params, coefficient = gauge.fix(artifacts.host(params), plan, records.resolved(ws.spec.layers, plan))
            params = sharding.put(params, sharding.abstract_params(ws.create(plan), ws.preprocess.size, ws.mesh))
        with sharding.use(ws.mesh):
            batches, _ = ws.calibration(min(64, ws.config.factorize.calibration_images))
            images = sharding.put_batch(next(iter(batches)), ws.mesh)["image"]
            before = jax.jit(trained.model.apply)({"params": trained.params}, images)
            after = jax.jit(ws.create(plan).apply)({"params": params}, images)
            largest = jnp.maximum(jnp.max(jnp.abs(before)), jnp.finfo(jnp.float32).tiny)  # 0 of a head of zeros
            difference = float(jnp.max(jnp.abs(after - before)) / largest)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"merging {name} changed its logits by {difference:.1e} relative")
        parent = f"{name}.trained"
        extra = {"merge_difference": difference} | ({"largest_coefficient": coefficient} if coefficient else {})
        ws.save(name, params, plan, parent=parent, notes=trained.meta["notes"], **extra)
