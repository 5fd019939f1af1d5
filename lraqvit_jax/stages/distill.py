"""Stage distill: trains every run of the ladder. `RUN.start` -> `RUN.trained`, plain pairs or with a branch."""

from collections.abc import Mapping
from typing import Any

from lraqvit_jax import models, weights
from lraqvit_jax.base import trees
from lraqvit_jax.devices import sharding
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.training import fit as training
from lraqvit_jax.weights import artifacts


def run(ws: Workspace) -> None:
    for name, options in ws.config["runs"].items():
        if ws.has(f"{name}.trained") or ws.has(name):
            continue
        dtype = ws.config["dtype"]
        start = ws.load(f"{name}.start", "factorize", dtype=dtype)
        dense = ws.load("dense", "teacher", dtype=dtype)
        size = options["image_size"] or ws.preprocess.size
        student, student_params = _at_size(ws, start, size, dtype)
        teacher, teacher_params = _at_size(ws, dense, size, dtype)
        own = trees.flatten(start.params)
        resampled = [path for path, leaf in trees.flatten(student_params).items() if leaf.shape != own[path].shape]
        plan = recipe(ws, options)
        steps, frozen = plan.steps, teacher_params if training.needs_teacher(options) else None
        towards = training.objective(options, student, teacher, resampled)
        params, checkpoints = training.fit(ws, name, towards, plan, student_params, frozen, size)
        params = trees.nest(trees.flatten(params) | {path: own[path] for path in resampled})
        notes = (
            f"{options['decomposition']} + {options['branch']} branch, {steps} steps at {size} pixels, "
            f"{options['alpha']:g} CE + {options['beta']:g} {'relative ' if options['normalized'] else ''}block MSE"
            f"{' (teacher-forced)' if options['teacher_forced'] else ''}"
            f"{' + {gamma:g} KL at T={temperature:g}'.format(**options) if options['gamma'] else ''}"
            f"{' of the last block' if options['last_block'] else ''}"
            f"{' + {bound:g} perturbation'.format(**options) if options['bound'] else ''}"
            f"{' + {delta:g} attention KL'.format(**options) if options['delta'] else ''}"
        )
        ws.save(f"{name}.trained", params, start.plan, parent=f"{name}.start", notes=notes)
        checkpoints.delete()


def recipe(ws: Workspace, options: Mapping[str, Any]) -> training.Recipe:
    """How a run is trained: the config's `optimizer` with what the run itself says."""
    fields = dict(ws.config["optimizer"])
    fields |= {"learning_rate": options["learning_rate"] or fields["learning_rate"]}
    fields |= {"weight_decay": options["weight_decay"]} if options["weight_decay"] >= 0 else {}
    return training.recipe(fields, options["steps"] or ws.steps(ws.config["steps"]))


def _at_size(ws: Workspace, found: artifacts.Artifact, size: int, dtype: str) -> tuple[Any, Any]:
    """The model and its parameters for images of another size, on the mesh."""
    if size == ws.preprocess.size:
        return found.model, found.params
    model = models.create(ws.model, num_classes=ws.num_classes, image_size=size, plan=found.plan, dtype=dtype)
    resized = weights.resize(artifacts.host(found.params), model, size)
    return model, sharding.put(resized, sharding.abstract_params(model, size, ws.mesh))
