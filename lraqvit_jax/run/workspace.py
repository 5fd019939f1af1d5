"""A work directory: what it is to do, its plan, its data, and its artefacts by name."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.base.version import VERSION
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.config import Config
from lraqvit_jax.data import matching, pipeline, skip, sources
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.sources import Source
from lraqvit_jax.devices import processes, sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.plan import check, files
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.run import claim, planning
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact


@dataclasses.dataclass(frozen=True)
class Workspace:
    """What every stage gets.

    Attributes:
        config: what it is to do.
        directory: WORKDIR.
        mesh: of all devices.
        model: variant name.
        num_classes: size of the logits.
        class_names: of the data or the weights; may be empty.
        preprocess: of the teacher.
        data_names: what the weights or the data that trained the teacher call the classes, where `class_names` says
            otherwise; [] where they say the same, or nothing.
        spec: of the model.
        plan: of the deployed model.
        provisional: whether the stage `plan` has yet to choose the ranks.
        moments: of the encoder's layers, by path, from the stage `plan` to the stage `factorize` where one call runs
            both: they are half the time of each.
        inputs: the files that it is made from; see `run.inputs`.
    """

    config: Config
    directory: pathlib.Path
    mesh: Mesh
    model: str
    num_classes: int
    class_names: list[str]
    preprocess: Preprocess
    data_names: list[str]
    spec: models.ModelSpec
    plan: dict[str, plan_lib.LayerPlan]
    provisional: bool = False
    moments: Mapping[str, Moments] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def path(self, name: str) -> pathlib.Path:
        return self.directory / "checkpoints" / name

    def has(self, name: str) -> bool:
        return artifacts.exists(self.path(name))

    def fingerprint(self, name: str) -> str:
        """What is another text once an artefact has other parameters."""
        written = artifacts.read_meta(self.path(name)).get("fingerprint")
        return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]

    def load(self, name: str, stage: str, **options: Any) -> Artifact:
        """Restores an artefact onto the mesh; UserError that names the stage to run where it is missing."""
        if not self.has(name):
            raise UserError(f"{self.directory} has no artefact {name!r} yet; run --stages={stage} first.")
        return artifacts.load_artifact(self.path(name), self.mesh, **options)

    def save(self, name: str, params: Any, plan: plan_lib.Plan, *, parent: str, notes: str = "", **extra: Any) -> None:
        """Writes an artefact with everything needed to rebuild it."""
        meta = {
            "schema": 1,
            "name": name,
            "model": self.model,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "data_names": self.data_names,
            "preprocess": self.preprocess.to_json(),
            "plan": files.to_json(plan),
            "config": self.config.to_dict(),
            "parent": parent,
            "notes": notes,
            "versions": {"lraqvit_jax": VERSION, **artifacts.versions()},
            **extra,
        }
        artifacts.save_artifact(self.path(name), params, meta)

    def with_plan(self, plan: plan_lib.Plan) -> "Workspace":
        """Writes the plan of a measured method, quantized as the configuration says."""
        plan = planning.quantized(self.config, self.spec, plan)
        check.check(plan, self.spec.layers)
        processes.once(lambda: claim.write(self.directory, self.config, plan))
        return dataclasses.replace(self, plan=plan, provisional=False)

    def create(self, plan: plan_lib.Plan, **options: Any) -> Any:
        """The model in the forms of a plan."""
        return models.create(
            self.model, num_classes=self.num_classes, image_size=self.preprocess.size, plan=plan, **options
        )

    def source(self, role: str) -> Source:
        """Opens the data for "train", "eval" or "calibration"; to train and to evaluate, with the model's labels."""
        data, name = self.config.data, self.config.data.source(role)
        classes = None if role == "calibration" else Classes.of(self.num_classes, self.class_names, self.data_names)
        needed = labels_count(self.config, role)
        if data.on_bad_image == "skip":
            host = f".{jax.process_index()}" if jax.process_index() else ""
            return skip.load(name, role, data.data_dir, self.directory / f"skipped{host}.txt", classes, needed)
        opened = sources.load(name, role, data.data_dir)
        return matching.matched(opened, classes, f"data.{role}", needed) if classes else opened

    def calibration(self, images: int, whole: bool = False) -> tuple[Any, list[int]]:
        """Batches of `images` calibration images drawn by the seed, and which they are.

        Each process gets the rows of every batch that its devices hold, or all of them where it wants the `whole`.

        Raises:
            UserError: the source has fewer.
        """
        source = self.source("calibration")
        if images > len(source) or images <= 0:
            raise UserError(f"calibration_images is {images}; data.calibration has {len(source)} images to draw from.")
        drawn = np.sort(self._permutation(source)[:images])
        return self._batches(source, drawn, whole), drawn.tolist()

    def others(self, images: int, count: int) -> Any:
        """Batches of `count` calibration images beside those that `calibration(images)` draws; where there are too few,
        the last ones of those."""
        source = self.source("calibration")
        count = min(count, len(source))
        start = min(images, len(source) - count)
        return self._batches(source, np.sort(self._permutation(source)[start : start + count]), False)

    def evaluation(self, images: int, batch_size: int) -> tuple[Any, np.ndarray]:
        """Batches of so many images of data.eval at most, evenly spread, and which they are."""
        source = self.source("eval")
        chosen = np.linspace(0, len(source) - 1, min(len(source), images)).astype(int)
        return pipeline.ordered(source, self.preprocess, batch_size=batch_size, indices=chosen), chosen

    def _permutation(self, source: Source) -> np.ndarray:
        return np.random.default_rng(self.config.seed).permutation(len(source))

    def _batches(self, source: Source, drawn: np.ndarray, whole: bool) -> Any:
        ways = self.mesh.spread("batch")
        batch = min(self.config.eval_batch_size, -(-len(drawn) // ways) * ways)
        rows = None if whole else sharding.rows_of_process(self.mesh, batch)
        return pipeline.ordered(source, self.preprocess, batch_size=batch, indices=drawn, rows=rows)

    def steps(self, steps: int) -> int:
        """Number of steps, from `epochs` where that is set."""
        if not self.config.epochs:
            return steps
        return max(1, round(self.config.epochs * len(self.source("train")) / self.config.batch_size))


def labels_count(config: Config, role: str) -> bool:
    """Whether the labels of a role's images change a result: to evaluate, and to train by them."""
    distils = (config.steps > 0 or config.epochs > 0) and any(run.alpha > 0 for run in config.runs.values())
    return role == "eval" or (role == "train" and (config.teacher.steps > 0 or distils))
