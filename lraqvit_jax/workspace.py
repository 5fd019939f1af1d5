"""A work directory: the configuration it belongs to, its plan, and its artefacts by name."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lraqvit_jax import __version__, checkpoint, metrics, models, sharding, weights
from lraqvit_jax import config as config_lib
from lraqvit_jax import plan as plan_lib
from lraqvit_jax.checkpoint import Artifact
from lraqvit_jax.data import pipeline, sources
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.preprocess import from_json as preprocess_from_json
from lraqvit_jax.data.sources import Source
from lraqvit_jax.errors import UserError
from lraqvit_jax.lowrank import ranks


@dataclasses.dataclass(frozen=True)
class Workspace:
    """What every stage gets.

    Attributes:
        config: all fields, as a plain dict.
        directory: WORKDIR.
        mesh: of all devices.
        model: variant name.
        num_classes: size of the logits.
        class_names: of the data or the weights; may be empty.
        preprocess: of the teacher.
        spec: of the model.
        plan: of the deployed model.
    """

    config: dict[str, Any]
    directory: pathlib.Path
    mesh: Mesh
    model: str
    num_classes: int
    class_names: list[str]
    preprocess: Preprocess
    spec: models.ModelSpec
    plan: dict[str, plan_lib.LayerPlan]

    def path(self, name: str) -> pathlib.Path:
        return self.directory / "checkpoints" / name

    def has(self, name: str) -> bool:
        return (self.path(name) / "meta" / "metadata").exists()

    def load(self, name: str, stage: str, **options: Any) -> Artifact:
        """Restores an artefact onto the mesh; UserError that names the stage to run where it is missing."""
        if not self.has(name):
            raise UserError(f"{self.directory} has no artefact {name!r} yet; run --stages={stage} first.")
        return checkpoint.load_artifact(self.path(name), self.mesh, **options)

    def save(self, name: str, params: Any, plan: plan_lib.Plan, *, parent: str, notes: str = "", **extra: Any) -> None:
        """Writes an artefact with everything needed to rebuild it."""
        meta = {
            "schema": 1,
            "name": name,
            "model": self.model,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "preprocess": self.preprocess.to_json(),
            "plan": plan_lib.to_json(plan),
            "config": self.config,
            "parent": parent,
            "notes": notes,
            "versions": {"lraqvit_jax": __version__, **checkpoint.versions()},
            **extra,
        }
        checkpoint.save_artifact(self.path(name), params, meta)

    def create(self, plan: plan_lib.Plan, **options: Any) -> Any:
        """The model in the forms of a plan."""
        return models.create(
            self.model, num_classes=self.num_classes, image_size=self.preprocess.size, plan=plan, **options
        )

    def source(self, role: str) -> Source:
        """Opens the data for "train", "eval" or "calibration"."""
        data = self.config["data"]
        name = data[role] or data["train"]
        opened = sources.load(name, role, data["data_dir"])
        if role == "train" and opened.class_names and len(opened.class_names) > self.num_classes:
            raise UserError(
                f"data.train has {len(opened.class_names)} classes and the model {self.num_classes}; "
                "set num_classes to the number of classes."
            )
        return opened

    def calibration(self, images: int) -> tuple[Any, list[int]]:
        """Batches of `images` calibration images drawn by the seed, and which they are.

        Raises:
            UserError: the source has fewer.
        """
        source, batch = self.source("calibration"), self.config["eval_batch_size"]
        if images > len(source) or images <= 0:
            raise UserError(f"calibration_images is {images}; data.calibration has {len(source)} images to draw from.")
        rng = np.random.default_rng(self.config["seed"])
        drawn = np.sort(rng.permutation(len(source))[:images])
        process = (jax.process_index(), jax.process_count())
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        batch = min(batch, -(-images // ways) * ways)
        batches = pipeline.ordered(source, self.preprocess, batch_size=batch, indices=drawn, process=process)
        return batches, drawn.tolist()

    def steps(self, steps: int) -> int:
        """Number of steps, from `epochs` where that is set."""
        if not self.config["epochs"]:
            return steps
        return max(1, round(self.config["epochs"] * len(self.source("train")) / self.config["batch_size"]))


def open_workspace(fields: Mapping[str, Any], directory: str | pathlib.Path, *, write: bool = True) -> Workspace:
    """Checks everything that can be checked before any work, then claims the directory for this configuration.

    Args:
        fields: the whole configuration; see `lraqvit_jax.config`.
        directory: WORKDIR; made if missing.
        write: False leaves the disk alone (`--dry_run`).

    Raises:
        UserError: a bad field, a directory of another configuration, a broken plan, missing data.
    """
    config: dict[str, Any] = json.loads(json.dumps(dict(fields)))
    directory = pathlib.Path(directory).expanduser().absolute()
    config_lib.check(_tuples(config))
    mesh = sharding.make_mesh(config["mesh"])
    for field in ("batch_size", "eval_batch_size"):
        sharding.check_batch(mesh, config[field], field)
    _check_same(config, directory)
    pretrained = weights.load(config["weights"]) if config["weights"] else None
    class_names = pretrained.class_names if pretrained else []
    num_classes = pretrained.num_classes if pretrained else config["num_classes"]
    if not num_classes:
        class_names = sources.load(config["data"]["train"], "train", config["data"]["data_dir"]).class_names
        num_classes = len(class_names)
    if not num_classes:
        raise UserError("The data names no classes; set num_classes.")
    preprocess = pretrained.preprocess if pretrained else preprocess_from_json(config["preprocess"])
    model = pretrained.model if pretrained else config["model"]
    spec = models.spec(model, num_classes=num_classes, image_size=preprocess.size)
    plan = _plan(config, spec, directory)
    if write:
        _claim(directory, config, plan)
    return Workspace(config, directory, mesh, model, num_classes, class_names, preprocess, spec, plan)


def _plan(config: Mapping[str, Any], spec: models.ModelSpec, directory: pathlib.Path) -> dict[str, plan_lib.LayerPlan]:
    """plan.json as the user left it, or a new one from the configuration."""
    written = directory / "plan.json"
    if written.exists():
        plan = plan_lib.read(written)
    else:
        plan = ranks.make_plan(spec.layers, config["plan"])
        quant = config["quant"]
        if quant["methods"]:
            plan = {
                info.path: dataclasses.replace(
                    plan[info.path], form="quantized", bits=8, granularity=quant["granularity"], clip=quant["clip"]
                )
                if info.compressible or quant["embedding_and_head"]
                else plan[info.path]
                for info in spec.layers
            }
    plan_lib.check(plan, spec.layers)
    if any(layer.form == "reparam" for layer in plan.values()):
        raise UserError("plan.json has a layer of form 'reparam', which is only a training form; write 'low_rank'.")
    factorized = directory / "checkpoints"
    for path in sorted(factorized.glob("*.start")):
        made = plan_lib.from_json(checkpoint.read_meta(path)["plan"])
        if made != plan_lib.low_rank(plan, "reparam"):
            raise UserError(
                f"{written} was changed after the stage factorize used it; put it back, or start a new work directory."
            )
    return plan


def _check_same(config: Mapping[str, Any], directory: pathlib.Path) -> None:
    written = directory / "config.json"
    if directory.exists() and not directory.is_dir():
        raise UserError(f"The work directory {directory} is a file; name a directory.")
    if not written.exists():
        return
    try:
        before = json.loads(written.read_text())
    except ValueError as error:
        raise UserError(f"{written} is not readable ({error}); name another work directory.") from error
    for name, value in _leaves(config).items():
        if name.split(".")[0] not in config_lib.FREE and _leaves(before).get(name) != value:
            raise UserError(
                f"{directory} belongs to another config: {name} was {_leaves(before).get(name)!r} and is {value!r}; "
                "name another work directory or put the field back."
            )
    gone = sorted(set(_leaves(before)) - set(_leaves(config)))
    if gone:
        raise UserError(f"{directory} belongs to another config, which had {gone[0]}; name another work directory.")


def _claim(directory: pathlib.Path, config: Mapping[str, Any], plan: plan_lib.Plan) -> None:
    if jax.process_index():
        return
    try:
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name, value in (("config.json", config), ("plan.json", plan_lib.to_json(plan))):
            if not (directory / name).exists():
                metrics.write_atomically(directory / name, json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"The work directory {directory} cannot be written ({error}); name another.") from error


def _leaves(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value
    return found


def _tuples(tree: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists back to the tuples of the configuration."""
    return {
        name: _tuples(value) if isinstance(value, Mapping) else tuple(value) if isinstance(value, list) else value
        for name, value in tree.items()
    }
