"""Trains in a work directory: restores or starts, runs to the end, hands back the parameters."""

import contextlib
import dataclasses
from typing import Any

from lraqvit_jax.data import augment, mix, pipeline
from lraqvit_jax.devices import sharding
from lraqvit_jax.options.training import Recipe
from lraqvit_jax.run.checkpoint import TrainCheckpoints
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.training import divergence, loop
from lraqvit_jax.training.objective import Objective, compile_step, loss_of

SHOWN = 6
"""Images of a batch that are named where its loss is not finite."""


def fit(
    ws: Workspace, name: str, objective: Objective, recipe: Recipe, params: Any, frozen: Any, image_size: int = 0
) -> Any:
    """Trains to the end of `recipe`, continuing from the newest checkpoint of this run if there is one.

    Args:
        ws: work directory, data, mesh.
        name: of the run; its checkpoints are `checkpoints/NAME.training`.
        objective: what to train.
        recipe: how.
        params: the start, on the mesh. They are consumed.
        frozen: parameters of the teacher, or None.
        image_size: of training, that of the objective's models; 0 is the workspace's.

    Returns:
        The trained parameters and the checkpoints, to be deleted once the artefact is written.
    """
    config, source = ws.config, ws.source("train")
    preprocess = dataclasses.replace(ws.preprocess, size=image_size or ws.preprocess.size)
    batches = pipeline.training(
        source,
        preprocess,
        augment.parse(config.augment),
        batch_size=config.batch_size,
        seed=config.seed,
        mix=mix.parse(config.mix),
        rows=sharding.rows_of_process(ws.mesh, config.batch_size),
    )

    def blame(step: int, params: Any, batch: Any) -> str:
        place = divergence.source(objective.model, loss_of(objective), params, frozen, batch)
        images = ", ".join(map(str, pipeline.images(len(source), config.seed, config.batch_size, step)[:SHOWN]))
        return f"step {step}, in {place}, on the batch of images {images}, ... of data.train"

    checkpoints = TrainCheckpoints(ws.path(f"{name}.training"), config.checkpoint_every)
    job = loop.Job(
        name,
        recipe.steps,
        config.batch_size,
        ws.mesh,
        checkpoints,
        ws.directory / "metrics.jsonl",
        config.log_every,
        loop.schedule(recipe),
        blame,
        config.tensorboard,
        config.profile,
    )
    with sharding.use(ws.mesh):
        compiled = compile_step(objective, recipe, preprocess.size, ws.mesh, config.accumulate, config.remat)
        state = checkpoints.restore(compiled.abstract, batches)
        if state is None:
            state = loop.init_state(params, compiled.tx, compiled.abstract)
        try:
            state = loop.fit(job, state, compiled.step, frozen, batches)
        except BaseException:
            with contextlib.suppress(Exception):  # What is being saved is finished; the first error is the one to tell.
                checkpoints.close()
            raise
    return state["params"], checkpoints
