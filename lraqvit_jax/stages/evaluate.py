"""Stage evaluate: a row in results.json for every deployable artefact that has none, and what it said of each image."""

import functools
from typing import Any

import jax
import numpy as np

from lraqvit_jax import config
from lraqvit_jax.base import console, files, paired, trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import processes
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.run import results
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.tasks import classification, search
from lraqvit_jax.weights.artifacts import Artifact


def run(ws: Workspace) -> None:
    """Evaluates what has no row yet; UserError where there is nothing to evaluate."""
    if not any(ws.has(name) for name in config.rows(ws.config)):
        raise UserError(f"{ws.directory} has nothing to evaluate yet; run --stages=teacher first.")
    add_rows(ws)


def add_rows(ws: Workspace) -> None:
    """Evaluates every artefact that has no row yet."""
    order = config.rows(ws.config)
    evaluated = {row["name"]: row for row in results.read(ws.directory)["rows"]}
    for name in order:
        if not ws.has(name):
            continue
        of = _of(ws, name)
        if name in evaluated:
            if all(evaluated[name].get(field, value) == value for field, value in of.items()):
                continue
            console.say(f"{name}: evaluated anew, since the model or the images of data.eval are others than before")
        artifact = ws.load(name, "evaluate")
        score = classification.accuracy(
            artifact.model,
            artifact.params,
            ws.source("eval"),
            artifact.preprocess,
            batch_size=ws.config.eval_batch_size,
            mesh=ws.mesh,
        )
        row = {"name": name, **size(artifact), "top1": score.top1, "top5": score.top5, "n_images": score.images}
        skipped = f"bad images skipped: {score.skipped:,}" if score.skipped else ""
        notes = "; ".join(filter(None, (artifact.meta["notes"], skipped)))
        row |= {"seconds": round(score.seconds, 3), "notes": notes, **of}
        processes.once(functools.partial(_keep, ws, name, score.answers))
        processes.once(functools.partial(_add, ws, row, order))
        console.say(f"{name}: top-1 {score.top1:.2f} % on {score.images:,} images, {row['size_mb']:.3f} MB")


def _add(ws: Workspace, row: dict[str, Any], order: list[str]) -> None:
    """Adds a row to results.json, that of a goal with what it lost."""
    if ws.config.goal.is_set and row["name"] == config.SMALLEST:
        row |= _drops(ws, row["name"])
    results.add(ws.directory, ws.model, row, order)


def _drops(ws: Workspace, name: str) -> dict[str, Any]:
    """Points of top-1 below the dense model, each with its interval: of all images, and of those that the search never
    saw, `held_out`. {} where none is known of the dense model."""
    path = ws.directory / "report"
    if not (path / "answers-dense.npz").exists():
        return {}
    dense, small = (np.load(path / f"answers-{one}.npz") for one in ("dense", name))
    right = [of_one["answer"] == of_one["label"] for of_one in (dense, small)]
    _, held_out = search.split(len(ws.source("eval")), ws.config.goal.held_out, ws.config.seed)
    fields: dict[str, Any] = {}
    for suffix, chosen in (("", np.ones(len(right[0]), bool)), ("_held_out", np.isin(dense["image"], held_out))):
        if chosen.any():
            before, after = (of_one[chosen] for of_one in right)
            drop = paired.drop(before, after, ws.config.goal.confidence)
            names = (f"drop{suffix}", f"drop{suffix}_low", f"drop{suffix}_high", f"n_images{suffix}")
            fields |= dict(zip(names, drop, strict=True))
    return fields


def _of(ws: Workspace, name: str) -> dict[str, str]:
    """What a row is of: images and parameters. An older version wrote neither."""
    return {"images": ws.inputs.get("data", {}).get("eval", ""), "fingerprint": ws.fingerprint(name)}


def _keep(ws: Workspace, name: str, answers: classification.Answers | None) -> None:
    """Writes report/answers-NAME.npz, for the report to compare models image by image."""
    if answers is not None and len(answers.image):
        files.write_arrays(ws.directory / "report" / f"answers-{name}.npz", answers._asdict())


def size(artifact: Artifact) -> dict[str, Any]:
    """Parameters of the deployed model, FLOPs of its linear layers an image, and the bytes its arrays really take."""
    cost = total_cost(artifact.plan, artifact.spec.layers)
    return {
        "params": cost.params + other_params(artifact.params, artifact.plan),
        "linear_gflops": cost.flops / 1e9,
        "size_mb": sum(leaf.nbytes for leaf in jax.tree.leaves(artifact.params)) / 1e6,
    }


def other_params(params: Any, plan: plan_lib.Plan) -> int:
    """Parameters outside the linear layers: norms, position embedding, class token."""
    inside = sum(leaf.size for path in plan for leaf in jax.tree.leaves(trees.get(params, path)))
    return sum(leaf.size for leaf in jax.tree.leaves(params)) - inside
