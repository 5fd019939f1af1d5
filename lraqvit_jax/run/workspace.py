"""A work directory: the configuration it belongs to, its plan, and its artefacts by name."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lraqvit_jax import config as config_lib
from lraqvit_jax import models, weights
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.base.version import VERSION
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.data import augment, class_names, pipeline, skip, sources
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.preprocess import from_json as preprocess_from_json
from lraqvit_jax.data.sources import Source
from lraqvit_jax.devices import processes, sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.lowrank import decomposition, reparam
from lraqvit_jax.plan import ranks
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.quant import quantize
from lraqvit_jax.run import metrics
from lraqvit_jax.weights import artifacts, tensors
from lraqvit_jax.weights.artifacts import Artifact


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
        provisional: whether the stage `plan` has yet to choose the ranks.
        moments: of the encoder's layers, by path, from the stage `plan` to the stage `factorize` where one call runs
            both: they are half the time of each.
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
    provisional: bool = False
    moments: Mapping[str, Moments] = dataclasses.field(default_factory=dict)

    def path(self, name: str) -> pathlib.Path:
        return self.directory / "checkpoints" / name

    def has(self, name: str) -> bool:
        return artifacts.meta_file(self.path(name)) is not None

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
            "preprocess": self.preprocess.to_json(),
            "plan": plan_lib.to_json(plan),
            "config": self.config,
            "parent": parent,
            "notes": notes,
            "versions": {"lraqvit_jax": VERSION, **artifacts.versions()},
            **extra,
        }
        artifacts.save_artifact(self.path(name), params, meta)

    def with_plan(self, plan: plan_lib.Plan) -> "Workspace":
        """Writes the plan of a measured method, quantized as the configuration says."""
        plan = quantized(self.config, self.spec, plan)
        plan_lib.check(plan, self.spec.layers)
        processes.once(lambda: _claim(self.directory, self.config, plan))
        return dataclasses.replace(self, plan=plan, provisional=False)

    def create(self, plan: plan_lib.Plan, **options: Any) -> Any:
        """The model in the forms of a plan."""
        return models.create(
            self.model, num_classes=self.num_classes, image_size=self.preprocess.size, plan=plan, **options
        )

    def source(self, role: str) -> Source:
        """Opens the data for "train", "eval" or "calibration"."""
        data, name = self.config["data"], config_lib.source(self.config, role)
        if data["on_bad_image"] == "skip":
            host = f".{jax.process_index()}" if jax.process_index() else ""
            opened: Source = skip.load(name, role, data["data_dir"], self.directory / f"skipped{host}.txt")
        else:
            opened = sources.load(name, role, data["data_dir"])
        _check_classes(role, opened, self.num_classes)
        return opened

    def calibration(self, images: int, whole: bool = False) -> tuple[Any, list[int]]:
        """Batches of `images` calibration images drawn by the seed, and which they are.

        Each process gets the rows of every batch that its devices hold, or all of them where it wants the `whole`.

        Raises:
            UserError: the source has fewer.
        """
        source, batch = self.source("calibration"), self.config["eval_batch_size"]
        if images > len(source) or images <= 0:
            raise UserError(f"calibration_images is {images}; data.calibration has {len(source)} images to draw from.")
        rng = np.random.default_rng(self.config["seed"])
        drawn = np.sort(rng.permutation(len(source))[:images])
        ways = self.mesh.spread("batch")
        batch = min(batch, -(-images // ways) * ways)
        rows = None if whole else sharding.rows_of_process(self.mesh, batch)
        batches = pipeline.ordered(source, self.preprocess, batch_size=batch, indices=drawn, rows=rows)
        return batches, drawn.tolist()

    def steps(self, steps: int) -> int:
        """Number of steps, from `epochs` where that is set."""
        if not self.config["epochs"]:
            return steps
        return max(1, round(self.config["epochs"] * len(self.source("train")) / self.config["batch_size"]))


def open_workspace(
    fields: Mapping[str, Any],
    directory: str | pathlib.Path,
    *,
    write: bool = True,
    make_mesh: Callable[[Mapping[str, Any]], Mesh] | None = None,
    evaluates: bool = True,
) -> Workspace:
    """Checks everything that can be checked before any work, then claims the directory for this configuration.

    Args:
        fields: the whole configuration; see `lraqvit_jax.config`.
        directory: WORKDIR; made if missing.
        write: False leaves the disk alone (`--dry_run`).
        make_mesh: makes another mesh than that of the configuration, from the configuration.
        evaluates: False needs no data.eval.

    Raises:
        UserError: a bad field, a directory of another configuration, a broken plan, missing data.
    """
    place = pathlib.Path(directory).expanduser().absolute()
    ws = processes.together(lambda: _opened(fields, place, write, make_mesh or _mesh, evaluates))
    if write:
        processes.once(lambda: _claim(ws.directory, ws.config, ws.plan, ws.provisional))
    return ws


def _mesh(config: Mapping[str, Any]) -> Mesh:
    return sharding.make_mesh(config["mesh"], rules=config["sharding"])


def _opened(
    fields: Mapping[str, Any],
    directory: pathlib.Path,
    write: bool,
    make_mesh: Callable[[Mapping[str, Any]], Mesh],
    evaluates: bool,
) -> Workspace:
    config: dict[str, Any] = json.loads(json.dumps(dict(fields)))
    # A ConfigDict sorts its keys; the run that is quantized is the top of the ladder and comes last.
    config["runs"] = dict(sorted(config["runs"].items(), key=lambda item: item[0] == config["quant"]["source"]))
    config_lib.check(_tuples(config))
    roles = [role for role in sources.ROLES if evaluates or role != "eval"]
    names = {role: config_lib.source(config, role) for role in roles}
    mesh = make_mesh(config)
    sharding.check_batch(mesh, config["batch_size"], "batch_size", config["accumulate"])
    sharding.check_batch(mesh, config["eval_batch_size"], "eval_batch_size")
    _check_same(config, directory)
    # A dry run of a config that names model and classes needs no weights, and downloads none.
    pretrained = read_weights(config) if write or not (config["model"] and config["num_classes"]) else None
    num_classes = pretrained.num_classes if pretrained else config["num_classes"]
    named = _class_names(config, pretrained, num_classes) if write or not num_classes else []
    num_classes = num_classes or len(named)
    if not num_classes:
        raise UserError("The data names no classes; set num_classes.")
    preprocess = pretrained.preprocess if pretrained else preprocess_from_json(config["preprocess"])
    if config["data"]["crop_pct"]:
        preprocess = dataclasses.replace(preprocess, crop_pct=config["data"]["crop_pct"])
    model = config["model"] or (pretrained.model if pretrained else "")
    if not model:
        raise UserError("The config names neither a model nor weights; set one of them.")
    if pretrained:
        _check_model(config, pretrained)
    spec = models.spec(model, num_classes=num_classes, image_size=preprocess.size)
    provisional = _provisional(config, directory)
    plan = _plan(config, spec, directory, provisional)
    if write:
        _check_names(config)
        for role, name in names.items():
            _check_classes(role, sources.load(name, role, config["data"]["data_dir"]), num_classes)
    return Workspace(
        config, directory, mesh, model, num_classes, named, preprocess, spec, plan, provisional=provisional
    )


def _class_names(config: Mapping[str, Any], pretrained: weights.Pretrained | None, num_classes: int) -> list[str]:
    """Of the file that the configuration names, or else of the weights, or else of the training data if there is one
    for each class; `num_classes` may be 0 while only the names tell how many there are."""
    if config["class_names"]:
        return class_names.read(config["class_names"], num_classes)
    if pretrained and pretrained.class_names:
        return pretrained.class_names
    found = sources.load(config["data"]["train"], "train", config["data"]["data_dir"]).class_names
    return found if len(found) == (num_classes or len(found)) else []


def _check_classes(role: str, opened: Source, num_classes: int) -> None:
    """Raises UserError for labels that the model has no logit for."""
    if len(opened.class_names) > num_classes:
        raise UserError(
            f"data.{role} has {len(opened.class_names)} classes and the model {num_classes}; "
            "set num_classes to the number of classes."
        )


def _check_model(config: Mapping[str, Any], pretrained: weights.Pretrained) -> None:
    """Raises UserError where the configuration names another model than its weights are of."""

    def build(name: str) -> Any:
        return models.create(name, num_classes=pretrained.num_classes, image_size=pretrained.preprocess.size)

    if config["model"] and build(config["model"]) != build(pretrained.model):
        raise UserError(
            f"model is {config['model']!r} and the weights are those of {pretrained.model!r}; "
            "correct one of them, or leave model empty."
        )


def read_weights(config: Mapping[str, Any]) -> weights.Pretrained | None:
    """The pretrained model that a configuration names, with its head and size; None where it names none."""
    if not config["weights"]:
        return None
    found = weights.read(config["weights"], num_classes=config["num_classes"], image_size=config["image_size"])
    tensors.check_finite(found.params, config["weights"])
    return found


def _provisional(config: Mapping[str, Any], directory: pathlib.Path) -> bool:
    """Whether ranks are still to be measured: neither the stage `plan` nor the user has written them."""
    if config["plan"]["method"] not in ranks.MEASURED or _edited(directory):
        return False
    return _claimed(directory).get("provisional", True)


def _plan(
    config: Mapping[str, Any], spec: models.ModelSpec, directory: pathlib.Path, provisional: bool
) -> dict[str, plan_lib.LayerPlan]:
    """plan.json as the user or the stage `plan` left it, or a new one from the configuration."""
    written = directory / "plan.json"
    if written.exists() and not provisional and (_started(directory) or _edited(directory)):
        plan = plan_lib.read(written)
    else:
        plan = quantized(config, spec, ranks.make_plan(spec.layers, config["plan"]))
    plan_lib.check(plan, spec.layers)
    if any(layer.form == "reparam" for layer in plan.values()):
        raise UserError("plan.json has a layer of form 'reparam', which is only a training form; write 'low_rank'.")
    factorized = directory / "checkpoints"
    for path in sorted(factorized.glob("*.start")):
        made = plan_lib.from_json(artifacts.read_meta(path)["plan"])
        if plan_lib.low_rank(made) != plan_lib.low_rank(plan):
            raise UserError(
                f"{written} was changed after the stage factorize used it; put it back, or start a new work directory."
            )
    return plan


def quantized(config: Mapping[str, Any], spec: models.ModelSpec, plan: plan_lib.Plan) -> dict[str, plan_lib.LayerPlan]:
    """A float plan with what `quant` says of each layer."""
    quant = config["quant"]
    if not quant["methods"]:
        return dict(plan)
    fields = {"form": "quantized", "bits": 8, "granularity": quant["granularity"], "clip": quant["clip"]}
    return {
        info.path: dataclasses.replace(plan[info.path], **fields)
        if info.compressible or quant["embedding_and_head"]
        else plan[info.path]
        for info in spec.layers
    }


def _check_names(config: Mapping[str, Any]) -> None:
    """Raises UserError for a name in the configuration that matches nothing, before hours of training find out."""
    augment.parse(config["augment"])
    if config["tensorboard"]:
        metrics.tensorboard()
    for name in config["factorize"]["baselines"]:
        decomposition(name)
    for run in config["runs"].values():
        decomposition(run["decomposition"])
        reparam.form(run["branch"])
    for options in config["quant"]["methods"].values():
        quantize.check(options)


def _check_same(config: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Raises UserError where results in the directory belong to another configuration."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"The work directory {directory} is a file; name a directory.")
    before = _claimed(directory).get("config")
    if not _started(directory):
        return
    if before is None:
        raise UserError(f"{directory} holds checkpoints but no config.json to tell whose; name another work directory.")
    old, new = (config_lib.filled(config_lib.leaves(one)) for one in (before, config))
    for name in sorted({*old, *new}):
        if not {name, name.split(".")[0]} & set(config_lib.FREE) and old.get(name) != new.get(name):
            raise UserError(
                f"{directory} belongs to another config: {name} was {old.get(name)!r} and is {new.get(name)!r}; "
                "name another work directory or put the field back."
            )


def _started(directory: pathlib.Path) -> bool:
    """Whether the directory holds anything that took work to make."""
    checkpoints = directory / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def _claimed(directory: pathlib.Path) -> dict[str, Any]:
    """What `config.json` says: the configuration, and the digest of the plan that was made from it."""
    written = directory / "config.json"
    if not written.exists():
        return {}
    found = files.json_object(written, "name another work directory")
    if not isinstance(found.get("config", {}), dict):
        raise UserError(f"{written} has no configuration; name another work directory.")
    return found


def _claim(directory: pathlib.Path, config: Mapping[str, Any], plan: plan_lib.Plan, provisional: bool = False) -> None:
    """Writes config.json and plan.json. A plan that the user edited stays as it is."""
    text = _plan_text(plan)
    try:
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        written = directory / "plan.json"
        edited, before = _edited(directory), _claimed(directory)
        if not written.exists() or plan_lib.read(written) != plan:
            files.write_atomically(written, text)
        claim = {"config": config, "plan_sha256": _digest(text), "provisional": provisional}
        if edited:
            claim["plan_sha256"] = before.get("plan_sha256", "")
        files.write_atomically(directory / "config.json", json.dumps(claim, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"The work directory {directory} cannot be written ({error}); name another.") from error


def _sweep(directory: pathlib.Path) -> None:
    """Deletes what a killed run was writing: artefacts and files get their names when they are whole."""
    for path in (directory / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path)
    for folder in (directory, directory / "export"):
        for path in folder.glob(f".*{files.UNFINISHED}"):
            path.unlink()


def _plan_text(plan: plan_lib.Plan) -> str:
    return json.dumps(plan_lib.to_json(plan), indent=1) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _edited(directory: pathlib.Path) -> bool:
    """Whether plan.json is no longer what the configuration gave."""
    written = directory / "plan.json"
    return written.exists() and _claimed(directory).get("plan_sha256") != _digest(files.text(written, plan_lib.MEND))


def _tuples(tree: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists back to the tuples of the configuration."""
    return {
        name: _tuples(value) if isinstance(value, Mapping) else tuple(value) if isinstance(value, list) else value
        for name, value in tree.items()
    }
