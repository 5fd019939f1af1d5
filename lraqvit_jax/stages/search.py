"""The budget that nobody knows: the smallest plan that keeps within a drop of accuracy, found by making and asking it.

A part of the stage plan, where a field of `goal` says what is good enough. Every model that is tried is made as the
other stages make it, of a plan for one budget, and answers images of data.eval that the search may see. What it was is
kept: the model as an artefact, named after its family and budget, such as "both-0.62"; plans and measurements in
WORKDIR/search/plans.json; what the images said in WORKDIR/search/search.json. The same command goes on from there.

Families: "both", channels, ranks and, where plan.widths gives some, bits under one budget, which is what is searched;
and to compare with it, "pairs", plain pairs in floats; "products", channels and pairs with identity blocks in floats;
"integers", dense kernels whose bits alone are chosen.
"""

import dataclasses
import functools
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config
from lraqvit_jax.data.sources import Chosen
from lraqvit_jax.devices import processes
from lraqvit_jax.options.goal import GoalOptions
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.plan import cost
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.budget import TooSmallError
from lraqvit_jax.report import search as report
from lraqvit_jax.run import planning
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages import distill, evaluate, factorize, merge, quantize
from lraqvit_jax.stages.searched import FOLDER, Layers, Planner, Plans, Record
from lraqvit_jax.tasks import classification, search
from lraqvit_jax.tasks.search import Judged, Rule, Teacher
from lraqvit_jax.weights.artifacts import Artifact

DECOMPOSITIONS = {"pairs": ("whitened",), "products": ("weighted_kfac",)}
"""Of the families that are compared in floats."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that may be made.

    Attributes:
        family: of FAMILIES.
        budget: share of what the encoder's layers cost when dense, in the family's unit.
        steps: of distillation.
    """

    family: str
    budget: float
    steps: int = 0

    @property
    def name(self) -> str:
        """Of its artefact."""
        return f"{self.family}-{self.budget:g}{f'-{self.steps}' if self.steps else ''}"


class Images(NamedTuple):
    """Those that the search sees, in the order in which it asks: their places in data.eval, and what the dense model
    says of them."""

    places: Int[np.ndarray, " images"]
    teacher: Teacher


class Search:
    """One search in a work directory."""

    def __init__(self, ws: Workspace, dense: Artifact, planner: Planner, pairs: Callable[[float], Layers]) -> None:
        """Asks the dense model.

        Args:
            ws: with `goal`, and the moments of the layers' inputs, with gradients.
            dense: the model.
            planner: of "both" and "products".
            pairs: the plan of plain pairs at a share of the encoder's parameters.

        Raises:
            UserError: no labelled image; a goal that the dense model does not reach.
        """
        self._ws, self._dense, self._goal, self._pairs = ws, dense, ws.config.goal, pairs
        processes.once(functools.partial((ws.directory / FOLDER).mkdir, exist_ok=True))
        self._plans = Plans(ws, planner)
        self._images = images(ws, dense)
        self._rule = rule(self._goal, self._images.teacher)
        head = {"images": len(self._images.places), "of": ws.inputs.get("data", {}).get("eval", "")}
        head |= {"limit": self._rule.limit if self._goal.accuracy else None, "by": self._rule.by}
        self._record = Record(ws.directory, head)

    def run(self) -> Layers:
        """The float plan of the smallest model that is good enough; writes search.json and frontier.svg.

        Raises:
            UserError: nothing is small enough, or good enough.
        """
        goal, unit = self._goal, self._ws.config.plan.unit
        high = self._largest()
        chosen = Candidate("both", high)
        if goal.accuracy:
            found = search.smallest(
                lambda budget: self._keeps(Candidate("both", budget)),
                goal.lowest,
                high,
                self._rule.limit,
                goal.resolution,
            )
            chosen = self._trained(found if found is not None else high, found is not None)
        point = self._point(chosen)
        for family in goal.families:
            for budget in goal.budgets:
                self._compare(Candidate(family, budget))
        self._record.write(chosen=point["name"])
        picture = report.picture(self._record.points, point["name"])
        processes.once(functools.partial(files.write_atomically, self._ws.directory / FOLDER / "frontier.svg", picture))
        kept = f"{point['drop']:.2f} points lost on {point['images']:,} images of the search"
        console.say(f"goal: {point['name']}, {point['size_mb']:.3f} MB, {kept}")
        return self._plans.plan(unit, chosen.budget)

    def _compare(self, candidate: Candidate) -> None:
        """A point to compare with; of a family that has nothing so small, none."""
        try:
            self._point(candidate)
        except UserError as error:
            console.detail(f"{candidate.name} is left out: {error}")

    def _trained(self, budget: float, kept: bool) -> Candidate:
        """The candidate to take where `budget` is the smallest that keeps within the drop untrained, or, where none
        does, the largest there may be: with `steps`, one further below, as far as a few trainings find it."""
        goal, steps = self._goal, self._ws.config.steps
        if steps and goal.trained:
            found = search.smallest(
                lambda one: self._keeps(Candidate("both", one, steps)),
                goal.lowest,
                budget - goal.resolution if kept else budget,
                self._rule.limit,
                goal.resolution,
                first=0.75,
                attempts=goal.trained,
            )
            if found is not None:
                return Candidate("both", found, steps)
        if not kept:
            point = min((point for point in self._record.points if point["family"] == "both"), key=lambda p: p["drop"])
            raise UserError(
                f"No model of at most {budget:g} of the dense encoder's {self._ws.config.plan.unit} keeps within "
                f"{self._rule.limit:.2f} points by goal.by={self._rule.by}: {point['name']} loses {point['drop']:.2f} "
                f"({point['drop_low']:.2f} to {point['drop_high']:.2f}) on {point['images']:,} images; allow more, set "
                "goal.by=mean, give more images, or `steps` of distillation."
            )
        return Candidate("both", budget)

    def _keeps(self, candidate: Candidate) -> tuple[bool, float]:
        """Whether a candidate keeps within the goal, and what is held to it; nothing does that cannot be so small."""
        try:
            point = self._point(candidate)
        except TooSmallError:
            return False, 100.0
        return point["keeps"], point["held"]

    def _largest(self) -> float:
        """The largest budget within all that the goal bounds."""
        goal = self._goal
        whole, bottom = round(1 / goal.resolution), max(1, round(goal.lowest / goal.resolution))
        if not goal.bounds or self._fits(1.0):
            return 1.0
        low, high = bottom - 1, whole
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(round(middle * goal.resolution, 6)) else (low, middle)
        if low < bottom:
            name, bound = next(iter(goal.bounds.items()))
            raise UserError(
                f"Not even {goal.lowest:g} of the dense encoder is within goal's {name} of {bound:g}; allow more, or "
                "lower goal.lowest."
            )
        return round(low * goal.resolution, 6)

    def _fits(self, budget: float) -> bool:
        try:
            costs = self._costs(self._planned(Candidate("both", budget)))
        except TooSmallError:
            return True
        return all(costs[name] <= bound for name, bound in self._goal.bounds.items())

    def _costs(self, plan: plan_lib.Plan) -> dict[str, float]:
        """What a deployed plan costs, as the model will; milliseconds where there is a table."""
        total = cost.total_cost(plan, self._ws.spec.layers)
        rest = evaluate.other_params(self._dense.params, self._dense.plan)
        costs = {"size_mb": (total.bytes + 4 * rest) / 1e6, "macs": total.flops / 2, "params": total.params + rest}
        if self._ws.config.plan.latency:
            milliseconds = cost.form_cost("latency", lambda _, layer: layer, cost.table(self._ws.config.plan.latency))
            layers = plan_lib.resolved(self._ws.spec.layers, plan)
            costs["ms"] = sum(milliseconds(info, plan[info.path]) for info in layers if info.compressible)
        return costs

    def _planned(self, candidate: Candidate) -> Layers:
        """The deployed plan of a candidate."""
        ws, layers = self._ws, self._ws.spec.layers
        if candidate.family == "both":
            return planning.quantized(ws.config, ws.spec, self._plans.plan(ws.config.plan.unit, candidate.budget))
        if candidate.family == "products":
            return self._plans.plan("params", candidate.budget)
        if candidate.family == "integers":
            return planning.quantized(ws.config, ws.spec, plan_lib.dense(layers))
        return self._pairs(candidate.budget)

    def _point(self, candidate: Candidate) -> dict[str, Any]:
        """What the images say of a candidate, made now or before."""
        known = self._record.known(candidate.name)
        if known and self._ws.has(candidate.name):
            return known
        started = time.perf_counter()
        if not self._ws.has(candidate.name):
            self._make(candidate)
        artifact = self._ws.load(candidate.name, "plan")
        judged = search.judge(self._answers(artifact), self._images.teacher, self._rule)
        # What the arrays really take stands above what the plan says of them.
        costs = self._costs(artifact.plan) | evaluate.size(artifact)
        point = {**dataclasses.asdict(candidate), "name": candidate.name, **costs, **_fields(judged)}
        if known is None:
            self._record.add(point)
        console.say(
            f"{candidate.name}: {point['size_mb']:.3f} MB, {point['drop']:+.2f} points lost on {point['images']:,} "
            f"images ({point['drop_low']:.2f} to {point['drop_high']:.2f}), {point['expected']:.2f} expected: "
            f"{'kept' if judged.keeps else 'refused'}, {time.perf_counter() - started:.0f} s"
        )
        return point

    def _answers(self, artifact: Artifact) -> search.Answers:
        """The answers of a model to the images."""
        ws, source = self._ws, self._ws.source("eval")

        def answers(start: int, end: int) -> Int[np.ndarray, " part"]:
            part = Chosen(source, self._images.places[start:end].tolist())
            options: dict[str, Any] = {"batch_size": ws.config.eval_batch_size, "mesh": ws.mesh}
            score = classification.accuracy(artifact.model, artifact.params, part, artifact.preprocess, **options)
            if score.answers is None or len(score.answers.image) != end - start:
                raise UserError("An image of data.eval cannot be read any more; the same command evaluates anew.")
            return score.answers.answer

        return answers

    def _make(self, candidate: Candidate) -> None:
        """Writes the candidate's artefact, by the stages that make any other, in a folder of its own."""
        ws, name = self._ws, candidate.name
        folder = ws.directory / FOLDER / "making"
        processes.once(functools.partial(_clean, folder, ws.path("dense")))
        plan = self._planned(candidate)
        within = dataclasses.replace(ws, directory=folder, plan=plan, provisional=False, config=_config(ws, candidate))
        if candidate.family == "integers":
            source, parent = quantize.calibrated(within, self._dense), "dense"
            quantizer = _quantizer(ws.config) or Quantizer(granularity="per_token_dynamic", bits=8)
            method = dataclasses.replace(quantizer, budget_mb=self._megabytes(candidate.budget))
            result = quantize.make(within, source, plan, method, name)
            notes = quantize.notes(method, method.granularity, result)
            within.save(name, result.params, result.plan, parent=parent, notes=notes, calibration=source.drawn)
        else:
            within = factorize.run(within)
            if candidate.family == "both":
                distill.run(within)
                merge.run(within)
                quantize.run(within)
        made = next(iter(within.config.factorize.rows), name)
        processes.once(functools.partial(_moved, within.path(made), ws.path(name)))

    def _megabytes(self, budget: float) -> float:
        """Of a model whose encoder takes that share of the bytes that it takes in integers of 8 bits."""
        ws = self._ws
        plan = planning.quantized(ws.config, ws.spec, plan_lib.dense(ws.spec.layers))
        encoder = [info for info in ws.spec.layers if info.compressible]
        saved = (1 - budget) * cost.total_cost({info.path: plan[info.path] for info in encoder}, encoder).bytes
        return self._costs(plan)["size_mb"] - saved / 1e6


def _config(ws: Workspace, candidate: Candidate) -> Config:
    """The configuration of the stages that make a candidate: one artefact, of its name."""
    config, both = ws.config, candidate.family == "both"
    (run,) = config.runs.values()
    quantizer = _quantizer(config) if both else None
    source = "low_rank" if quantizer else candidate.name
    run = dataclasses.replace(run, steps=candidate.steps, branch=run.branch if candidate.steps else "none")
    changes: dict[str, Any] = {
        "factorize": dataclasses.replace(config.factorize, baselines=DECOMPOSITIONS.get(candidate.family, ())),
        "runs": {source: run} if both else {},
        "quant": dataclasses.replace(
            config.quant, source=source, methods={candidate.name: quantizer} if quantizer else {}, dense=False
        ),
        "goal": GoalOptions(),
    }
    return dataclasses.replace(config, steps=candidate.steps, epochs=0.0, **changes)


def _quantizer(config: Config) -> Quantizer | None:
    """Of the row that the goal asks for, which is the only one; None of a float one."""
    return next(iter(config.quant.methods.values()), None)


def _clean(folder: pathlib.Path, dense: pathlib.Path) -> None:
    """An empty work directory with that dense model."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "dense").symlink_to(dense.absolute(), target_is_directory=True)


def _moved(made: pathlib.Path, name: pathlib.Path) -> None:
    """Gives an artefact its place; what it was made in goes."""
    made.rename(name)
    shutil.rmtree(made.parents[1])


def _fields(judged: Judged) -> dict[str, Any]:
    drop, expected, keeps, held = judged
    fields = {"drop": drop.drop, "drop_low": drop.low, "drop_high": drop.high, "images": drop.images}
    likewise = {"expected": expected.drop, "expected_low": expected.low, "expected_high": expected.high}
    return {**fields, **likewise, "keeps": keeps, "held": held}


def images(ws: Workspace, dense: Artifact) -> Images:
    """The labelled images of data.eval that the search sees, and the dense model's answers."""
    source = ws.source("eval")
    places, _ = search.split(len(source), ws.config.goal.held_out, ws.config.seed)
    part = Chosen(source, places.tolist())
    seen = classification.labelled(
        dense.model, dense.params, part, dense.preprocess, batch_size=ws.config.eval_batch_size, mesh=ws.mesh
    )
    if not len(seen.image):
        raise UserError("data.eval has no labelled image to judge by; name others.")
    return Images(places[seen.image], Teacher.of(seen.logits, seen.label))


def rule(goal: GoalOptions, teacher: Teacher) -> Rule:
    """What has to keep within what: the drop that is allowed, or that from the dense model down to `min_top1`."""
    limits = [goal.max_drop] if goal.max_drop >= 0 else []
    if goal.min_top1:
        limits.append(100 * float(np.mean(teacher.answer == teacher.label)) - goal.min_top1)
    if limits and min(limits) < 0:
        raise UserError(
            f"The dense model has {goal.min_top1 + min(limits):.2f} % on the images of the search, below goal.min_top1="
            f"{goal.min_top1:g}; lower that."
        )
    return Rule(min(limits) if limits else 100.0, goal.by, goal.confidence)
