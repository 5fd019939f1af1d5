"""Stage distill: trains every run of the ladder. `RUN.start` -> `RUN.trained`, plain pairs or with a branch."""

from typing import Any

from lraqvit_jax import models, weights
from lraqvit_jax.base import trees
from lraqvit_jax.devices import sharding
from lraqvit_jax.options.training import Run
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.training import objective, terms
from lraqvit_jax.training.fit import fit
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact


def run(ws: Workspace) -> None:
    for name, options in ws.config.runs.items():
        if not (ws.has(f"{name}.trained") or ws.has(name)):
            _train(ws, name, options)


def _train(ws: Workspace, name: str, options: Run) -> None:
    """Trains one run, at its image size, and writes `NAME.trained` at the model's."""
    dtype = ws.config.dtype
    start = ws.load(f"{name}.start", "factorize", dtype=dtype)
    dense = ws.load("dense", "teacher", dtype=dtype)
    size = options.image_size or ws.preprocess.size
    student, student_params = _at_size(ws, start, size, dtype)
    teacher, teacher_params = _at_size(ws, dense, size, dtype)
    original = trees.flatten(start.params)
    resampled = [path for path, leaf in trees.flatten(student_params).items() if leaf.shape != original[path].shape]
    recipe = options.recipe(ws.config.optimizer, ws.steps(ws.config.steps))
    frozen = teacher_params if terms.needs(options.distillation) else None
    towards = objective.of_run(options, student, teacher, resampled)
    params, checkpoints = fit(ws, name, towards, recipe, student_params, frozen, size)
    params = trees.nest(trees.flatten(params) | {path: original[path] for path in resampled})
    trained = f"{recipe.steps} steps at {size} pixels, {terms.describe(options.distillation)}"
    branch = f" + {options.branch} branch" if recipe.steps or options.branch != "none" else ""
    notes = f"{options.decomposition}{branch}, {trained if recipe.steps else 'not trained'}"
    ws.save(f"{name}.trained", params, start.plan, parent=f"{name}.start", notes=notes)
    checkpoints.delete()


def _at_size(ws: Workspace, artifact: Artifact, size: int, dtype: str) -> tuple[Any, Any]:
    """The model and its parameters for images of another size, on the mesh."""
    if size == ws.preprocess.size:
        return artifact.model, artifact.params
    model = models.create(ws.model, num_classes=ws.num_classes, image_size=size, plan=artifact.plan, dtype=dtype)
    resized = weights.resize(artifacts.host(artifact.params), model, size)
    return model, sharding.put(resized, sharding.abstract_params(model, size, ws.mesh))
