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
    batch_size, source = ws.config.batch_size, ws.source("train")
    preprocess = dataclasses.replace(ws.preprocess, size=image_size or ws.preprocess.size)
    batches = pipeline.training(
        source,
        preprocess,
        augment.parse(ws.config.augment),
        batch_size=batch_size,
        seed=ws.config.seed,
        mix=mix.parse(ws.config.mix),
        rows=sharding.rows_of_process(ws.mesh, batch_size),
    )

    def blame(step: int, params: Any, batch: Any) -> str:
        place = divergence.source(objective.model, loss_of(objective), params, frozen, batch)
        images = ", ".join(map(str, pipeline.images(len(source), ws.config.seed, batch_size, step)[:SHOWN]))
        return f"step {step}, in {place}, on the batch of images {images}, ... of data.train"

    with sharding.use(ws.mesh):
        fields = ws.config.accumulate, ws.config.remat
        compiled = compile_step(objective, recipe, preprocess.size, ws.mesh, *fields)
        checkpoints = TrainCheckpoints(ws.path(f"{name}.training"), ws.config.checkpoint_every)
        state = checkpoints.restore(compiled.abstract, batches)
        if state is None:
            state = loop.init_state(params, compiled.tx, compiled.abstract)
        try:
            state = loop.fit(
                name,
                state,
                compiled.step,
                frozen,
                batches,
                steps=recipe.steps,
                batch_size=batch_size,
                mesh=ws.mesh,
                checkpoints=checkpoints,
                metrics_path=ws.directory / "metrics.jsonl",
                log_every=ws.config.log_every,
                learning_rate=loop.schedule(recipe),
                blame=blame,
                tensorboard=ws.config.tensorboard,
                profile=ws.config.profile,
            )
        except BaseException:
            with contextlib.suppress(Exception):  # What is being saved is finished; the first error is the one to tell.
                checkpoints.close()
            raise
    return state["params"], checkpoints
