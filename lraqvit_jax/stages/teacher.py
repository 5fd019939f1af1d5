"""Stage teacher: the dense model, loaded or trained or both. Writes the artefact `dense`."""

import jax

from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import sharding
from lraqvit_jax.options.training import Recipe
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.run.opening import read_weights
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.training.fit import fit
from lraqvit_jax.training.objective import Objective


def run(ws: Workspace) -> None:
    if ws.has("dense"):
        return
    config, plan = ws.config, plan_lib.dense(ws.spec.layers)
    steps = config.teacher.steps
    if not config.weights and not steps:
        raise UserError("There is no teacher: name pretrained weights in `weights`, or train one with teacher.steps.")
    if steps and ws.source("train")[0]["label"] < 0:
        raise UserError(
            "data.train has no labels to train the teacher with; set teacher.steps to 0, or name labelled images."
        )
    model = ws.create(plan, dtype=config.dtype)
    abstract = sharding.abstract_params(model, ws.preprocess.size, ws.mesh)
    source = {"source": "", "sha256": ""}
    if pretrained := read_weights(config):
        params = sharding.put(pretrained.params, abstract)
        source = {"source": pretrained.source, "sha256": pretrained.sha256, "license": weights.licence(config.weights)}
    else:
        params = sharding.init_params(model, jax.random.key(config.seed), ws.preprocess.size, abstract)
    checkpoints = None
    if steps:
        recipe = Recipe.of(config.teacher, steps)
        objective = Objective(model, label_smoothing=config.teacher.label_smoothing)
        params, checkpoints = fit(ws, "teacher", objective, recipe, params, None)
    notes = f"trained {steps} steps" if steps else f"from {config.weights}"
    ws.save("dense", params, plan, parent="", notes=notes, weights=source)
    if checkpoints:
        checkpoints.delete()
