"""Stage distill: trains every run of the ladder. `RUN.start` -> `RUN.trained`, both in reparam form."""

from lraqvit_jax.stages import training
from lraqvit_jax.workspace import Workspace


def run(ws: Workspace) -> None:
    for name, options in ws.config["runs"].items():
        if ws.has(f"{name}.trained") or ws.has(name):
            continue
        dtype = ws.config["dtype"]
        start = ws.load(f"{name}.start", "factorize", dtype=dtype)
        dense = ws.load("dense", "teacher", dtype=dtype)
        steps = options["steps"] or ws.steps(ws.config["steps"])
        recipe = training.recipe(ws.config["optimizer"], steps, options["learning_rate"])
        objective = training.Objective(
            start.model,
            dense.model,
            alpha=options["alpha"],
            beta=options["beta"],
            teacher_forced=options["teacher_forced"],
            freeze_base=not options["train_base"],
        )
        frozen = dense.params if options["beta"] else None
        params, checkpoints = training.fit(ws, name, objective, recipe, start.params, frozen)
        notes = (
            f"{options['decomposition']} + {options['branch']} branch, {steps} steps, "
            f"{options['alpha']:g} CE + {options['beta']:g} block MSE"
            f"{' (teacher-forced)' if options['teacher_forced'] else ''}"
        )
        ws.save(f"{name}.trained", params, start.plan, parent=f"{name}.start", notes=notes)
        checkpoints.delete()
