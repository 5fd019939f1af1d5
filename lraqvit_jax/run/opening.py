"""Opens a work directory: everything that can be checked before any work is checked here."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lraqvit_jax import models, weights
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config
from lraqvit_jax.data import class_names, matching, preprocess, sources
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import processes, sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.run import checks, claim, inputs, planning
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts, tensors


class Identity(NamedTuple):
    """Who the teacher is: its variant, the size of its logits and what they are called, how its images are prepared.

    `data_names`: see `Workspace`.
    """

    model: str
    num_classes: int
    class_names: list[str]
    preprocess: Preprocess
    data_names: list[str]


def open_workspace(
    config: Config,
    directory: str | pathlib.Path,
    *,
    write: bool = True,
    make_mesh: Callable[[Config], Mesh] | None = None,
    evaluates: bool = True,
) -> Workspace:
    """Checks everything that can be checked before any work, then claims the directory for this configuration.

    Args:
        config: what it is to do; see `lraqvit_jax.config.parse`.
        directory: WORKDIR; made if missing.
        write: False leaves the disk alone (`--dry_run`).
        make_mesh: makes another mesh than that of the configuration, from the configuration.
        evaluates: False needs no data.eval, and takes a model without classes, which gives features.

    Raises:
        UserError: a directory of another configuration, a broken plan, missing data, a name that matches nothing.
    """
    place = files.locate_new(directory)
    ws = processes.together(lambda: _opened(config, place, write, make_mesh or _mesh, evaluates))
    if write:
        processes.once(lambda: _claim(ws))
    return ws


def _claim(ws: Workspace) -> None:
    """Binds the directory to the configuration; artefacts that are there take the class names that it has now."""
    claim.write(ws.directory, ws.config, ws.plan, ws.provisional)
    inputs.write(ws.directory, ws.inputs, inputs.read(ws.directory))
    for directory in (ws.directory / "checkpoints").iterdir() if ws.config.class_names else ():
        if artifacts.exists(directory):
            _rename(directory, {"class_names": ws.class_names, "data_names": ws.data_names})


def _rename(directory: pathlib.Path, names: dict[str, list[str]]) -> None:
    """Gives an artefact other names of classes, where it has not these already."""
    meta, path = artifacts.read_meta(directory), artifacts.meta_file(directory)
    if path and {**meta, **names} != meta:
        files.write_atomically(path, json.dumps({**meta, **names}))


def _mesh(config: Config) -> Mesh:
    return sharding.make_mesh(dataclasses.asdict(config.mesh), rules=dataclasses.asdict(config.sharding))


def _opened(
    config: Config, directory: pathlib.Path, write: bool, make_mesh: Callable[[Config], Mesh], evaluates: bool
) -> Workspace:
    roles = [role for role in sources.ROLES if evaluates or role != "eval"]
    for role in roles:
        config.data.source(role)
    mesh = make_mesh(config)
    sharding.check_batch(mesh, config.batch_size, "batch_size", config.accumulate)
    sharding.check_batch(mesh, config.eval_batch_size, "eval_batch_size")
    claim.check_same(config, directory)
    teacher = _finished(config, directory) or _identity(config, write, evaluates)
    _check_features(config, teacher, evaluates)
    spec = models.spec(teacher.model, num_classes=teacher.num_classes, image_size=teacher.preprocess.size)
    provisional = planning.provisional(config, directory)
    plan = planning.current(config, spec, directory, provisional)
    checks.memory(config, teacher.preprocess.size, jax.process_count())
    if write:
        checks.modules(config)
        checks.inputs(config, Classes.of(teacher.num_classes, teacher.class_names, teacher.data_names), roles)
        before = inputs.read(directory)
        now = inputs.of(config, roles, before)
        inputs.check(now, before, config, artifacts.names(directory / "checkpoints"))
    else:
        now = {}
    return Workspace(config, directory, mesh, *teacher, spec, plan, provisional=provisional, inputs=now)


def _finished(config: Config, directory: pathlib.Path) -> Identity | None:
    """Of the artefact `dense`, which needs neither weights nor training data any more; None where there is none yet."""
    if not artifacts.exists(directory / "checkpoints" / "dense"):
        return None
    meta = artifacts.read_meta(directory / "checkpoints" / "dense")
    names = class_names.read(config.class_names, meta["num_classes"]) if config.class_names else meta["class_names"]
    of_file = bool(meta.get("config", {}).get("class_names"))
    others = meta.get("data_names") or ([] if of_file else meta["class_names"])
    prepare = preprocess.from_json(meta["preprocess"])
    return Identity(meta["model"], meta["num_classes"], names, prepare, others if others != names else [])


def _check_features(config: Config, teacher: Identity, evaluates: bool) -> None:
    """Raises UserError where a model that gives features is to be measured or trained by its classes."""
    if teacher.num_classes:
        return
    if evaluates:
        raise UserError(
            f"{config.weights or config.model} gives features and has no classes to evaluate; set num_classes for a "
            "new head, or compress it from Python: lraqvit_jax.compress."
        )
    trained: dict[str, Any] = {name: run for name, run in config.runs.items() if run.steps or config.steps}
    trained |= {name: method for name, method in config.quant.methods.items() if method.tuning_steps}
    for name, options in trained.items():
        if options.alpha or options.gamma:
            raise UserError(
                f"{name} is trained towards classes, and the model gives features; set alpha and gamma to 0."
            )


def _identity(config: Config, write: bool, evaluates: bool) -> Identity:
    """Of the weights, or of the model that is to be trained.

    A dry run of a config that names model and classes needs no weights, and downloads none.
    """
    pretrained = read_weights(config) if write or not (config.model and config.num_classes) else None
    num_classes = pretrained.num_classes if pretrained else config.num_classes
    features = not num_classes and (bool(pretrained) or not evaluates)
    names = _class_names(config, pretrained, num_classes) if not features and (write or not num_classes) else []
    if not (num_classes or names or features):
        raise UserError("The data names no classes; set num_classes.")
    prepare = pretrained.preprocess if pretrained else preprocess.from_json(dataclasses.asdict(config.preprocess))
    prepare = preprocess.from_json({**prepare.to_json(), **config.data.preprocess})
    model = config.model or (pretrained.model if pretrained else "")
    if not model:
        raise UserError("The config names neither a model nor weights; set one of them.")
    if pretrained:
        _check_model(config, pretrained)
    return Identity(model, num_classes or len(names), names, prepare, _data_names(config, pretrained, names))


def _class_names(config: Config, pretrained: weights.Pretrained | None, num_classes: int) -> list[str]:
    """Of the file that the configuration names, or else of the weights, or else of the training data if there is one
    for each class; `num_classes` may be 0 while only the names tell how many there are."""
    if config.class_names:
        return class_names.read(config.class_names, num_classes)
    if pretrained and pretrained.class_names:
        return pretrained.class_names
    source = sources.load(config.data.train, "train", config.data.data_dir)
    if len(source.class_names) != (num_classes or len(source.class_names)):
        return []
    if pretrained and not config.teacher.steps:  # The order is the weights', which tell nothing of it.
        source = matching.matched(source, Classes(num_classes), "data.train", needed=False)
    return source.class_names


def _data_names(config: Config, pretrained: weights.Pretrained | None, names: list[str]) -> list[str]:
    """Where a file gives the names: those of the weights, or of the data that train a head, if they call the classes
    otherwise. By them labels are matched as well."""
    if not config.class_names:
        return []
    if pretrained and pretrained.class_names:
        return pretrained.class_names if pretrained.class_names != names else []
    if not config.teacher.steps:
        return []
    source = sources.load(config.data.train, "train", config.data.data_dir)
    renamed = not source.numbered and matching.renames(source.class_names, names)
    return source.class_names if renamed and source.class_names != names else []


def _check_model(config: Config, pretrained: weights.Pretrained) -> None:
    """Raises UserError where the configuration names another model than its weights are of."""

    def build(name: str) -> Any:
        return models.create(name, num_classes=pretrained.num_classes, image_size=pretrained.preprocess.size)

    if config.model and build(config.model) != build(pretrained.model):
        raise UserError(
            f"model is {config.model!r} and the weights are those of {pretrained.model!r}; "
            "correct one of them, or leave model empty."
        )


def read_weights(config: Config) -> weights.Pretrained | None:
    """The pretrained model that a configuration names, with its head and size; None where it names none."""
    if not config.weights:
        return None
    pretrained = weights.read(config.weights, num_classes=config.num_classes, image_size=config.image_size)
    tensors.check_finite(pretrained.params, config.weights)
    return pretrained
