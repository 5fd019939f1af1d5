"""Stage evaluate: a row in results.json for every deployable artefact that has none, and what it said of each image."""

import functools
from typing import Any

import jax

from lraqvit_jax.base import console, files, trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import processes
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.plan.records import Plan
from lraqvit_jax.run import results
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages.factorize import row_name
from lraqvit_jax.tasks import classification as evaluate
from lraqvit_jax.weights.artifacts import Artifact


def row_names(ws: Workspace) -> list[str]:
    """Every row that this configuration can give, in the order of the table."""
    baselines = [row_name(name) for name in ws.config["factorize"]["baselines"]]
    return ["dense", *baselines, *ws.config["runs"], *ws.config["quant"]["methods"]]


def run(ws: Workspace) -> None:
    """Evaluates what has no row yet; UserError where there is nothing to evaluate."""
    if not any(ws.has(name) for name in row_names(ws)):
        raise UserError(f"{ws.directory} has nothing to evaluate yet; run --stages=teacher first.")
    add_rows(ws)


def add_rows(ws: Workspace) -> None:
    """Evaluates every artefact that has no row yet."""
    order = row_names(ws)
    known = {row["name"] for row in results.read(ws.directory)["rows"]}
    for name in order:
        if name in known or not ws.has(name):
            continue
        found = ws.load(name, "evaluate")
        score = evaluate.accuracy(
            found.model,
            found.params,
            ws.source("eval"),
            found.preprocess,
            batch_size=ws.config["eval_batch_size"],
            mesh=ws.mesh,
        )
        row = {"name": name, **size(found), **{"top1": score.top1, "top5": score.top5, "n_images": score.images}}
        notes = [found.meta["notes"], f"bad images skipped: {score.skipped:,}"][: 1 + bool(score.skipped)]
        row |= {"seconds": round(score.seconds, 3), "notes": "; ".join(filter(None, notes))}
        processes.once(functools.partial(_keep, ws, name, score.answers))
        processes.once(functools.partial(results.add, ws.directory, ws.model, row, order))
        console.say(f"{name}: top-1 {score.top1:.2f} % on {score.images:,} images, {row['size_mb']:.3f} MB")


def _keep(ws: Workspace, name: str, answers: evaluate.Answers | None) -> None:
    """Writes report/answers-NAME.npz, for the report to compare models image by image."""
    if answers is not None and len(answers.image):
        files.write_arrays(ws.directory / "report" / f"answers-{name}.npz", answers._asdict())


def size(found: Artifact) -> dict[str, Any]:
    """Parameters of the deployed model, FLOPs of its linear layers an image, and the bytes its arrays really take."""
    cost = total_cost(found.plan, found.spec.layers)
    return {
        "params": cost.params + other_params(found.params, found.plan),
        "linear_gflops": cost.flops / 1e9,
        "size_mb": sum(leaf.nbytes for leaf in jax.tree.leaves(found.params)) / 1e6,
    }


def other_params(params: Any, plan: Plan) -> int:
    """Parameters outside the linear layers: norms, position embedding, class token."""
    inside = sum(leaf.size for path in plan for leaf in jax.tree.leaves(trees.get(params, path)))
    return sum(leaf.size for leaf in jax.tree.leaves(params)) - inside
