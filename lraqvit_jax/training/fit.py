"""Runs the training loop for a stage: restore or start, fit, hand back the parameters."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lraqvit_jax.base import trees
from lraqvit_jax.data import augment, mix, pipeline
from lraqvit_jax.devices import sharding
from lraqvit_jax.run.checkpoint import TrainCheckpoints
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.training import divergence, qat
from lraqvit_jax.training import loop as train
from lraqvit_jax.training import step as losses
from lraqvit_jax.training.loop import Recipe

SHOWN = 6
"""Images of a batch that are named where its loss is not finite."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is trained and towards what; hashable, so that runs that differ only in their start share one compilation.

    Attributes:
        model: trained.
        teacher: dense model, or None for training on labels alone.
        alpha: weight of the cross-entropy.
        beta: weight of the block distillation.
        gamma: weight of the distillation of logits.
        temperature: of the distillation of logits.
        teacher_forced: see `losses.distillation`.
        normalized: likewise.
        last_block: see `losses.distillation`.
        delta: weight of the distillation of attention maps.
        bound: weight of the distance from the teacher's kernels.
        label_smoothing: of the cross-entropy.
        freeze_base: keep the factors u and v of reparam layers, train their branches and all else.
        freeze: paths of further parameters to keep.
        scale_ratio: above 0, by how much more than the learning rate the scales of quantized layers move, as a share of
            themselves.
    """

    model: nn.Module
    teacher: nn.Module | None = None
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 0.0
    temperature: float = 1.0
    teacher_forced: bool = False
    normalized: bool = False
    last_block: bool = False
    delta: float = 0.0
    bound: float = 0.0
    label_smoothing: float = 0.0
    freeze_base: bool = False
    freeze: tuple[str, ...] = ()
    scale_ratio: float = 0.0


class Compiled(NamedTuple):
    """A step function with the optimizer and the abstract state it belongs to."""

    step: Any
    tx: Any
    abstract: train.State


def kept(objective: Objective, params: Any) -> Any:
    """True at the parameters that are not trained."""
    flat = trees.flatten(params)
    keep = {path: path in objective.freeze for path in flat}
    if objective.freeze_base:
        for path in flat:
            where, _, name = path.rpartition("/")
            keep[path] |= name in ("u", "v") and f"{where}/d{name}" in flat
    return trees.nest(keep)


def _scales(params: Any) -> Any:
    """True at the scales of quantized layers."""
    return trees.nest({path: qat.learned_scale(path) for path in trees.flatten(params)})


@functools.lru_cache(maxsize=16)
def compile_step(
    objective: Objective,
    recipe: Recipe,
    image_size: int,
    mesh: sharding.Mesh,
    micro_batches: int = 1,
    remat: str = "none",
) -> Compiled:
    """Builds the step; it compiles when it is first called or lowered.

    Args:
        objective: what to train.
        recipe: how.
        image_size: side of the images.
        mesh: where it runs.
        micro_batches: parts of a batch that are computed one after another.
        remat: of the blocks of the model that is trained; see `layers.LinearOptions`.
    """
    objective = rematerialized(objective, remat)
    abstract = sharding.abstract_params(objective.model, image_size, mesh)
    some = objective.freeze_base or objective.freeze
    relative = (objective.scale_ratio, _scales) if objective.scale_ratio else None
    tx = train.optimizer(recipe, functools.partial(kept, objective) if some else None, relative)
    state = train.abstract_state(abstract, tx, mesh)
    shared = losses.shared(objective.teacher, objective.normalized and objective.beta > 0, objective.last_block)
    return Compiled(train.make_step(loss_of(objective), tx, state, mesh, micro_batches, shared), tx, state)


def loss_of(objective: Objective) -> train.LossFn:
    """The function that a step differentiates."""
    if objective.teacher is None:
        return losses.supervised(objective.model, objective.label_smoothing)
    return losses.distillation(
        objective.model,
        objective.teacher,
        alpha=objective.alpha,
        beta=objective.beta,
        gamma=objective.gamma,
        temperature=objective.temperature,
        teacher_forced=objective.teacher_forced,
        normalized=objective.normalized,
        last_block=objective.last_block,
        delta=objective.delta,
        bound=objective.bound,
        label_smoothing=objective.label_smoothing,
    )


def rematerialized(objective: Objective, remat: str) -> Objective:
    """The same with the blocks of the trained model as `remat` says; see `layers.LinearOptions`."""
    model: Any = objective.model
    changed = model.clone(options=dataclasses.replace(model.options, remat=remat))
    return dataclasses.replace(objective, model=changed)


def abstract_batch(
    batch_size: int, image_size: int, mesh: sharding.Mesh, mixed: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a batch as `data.pipeline.training` makes it."""
    shapes: dict[str, Any] = {"image": ((batch_size, image_size, image_size, 3), jnp.float32)}
    shapes |= {"label": ((batch_size,), jnp.int32)}
    if mixed:
        shapes |= {"other_label": ((batch_size,), jnp.int32), "share": ((batch_size,), jnp.float32)}
    where = sharding.over_batch(mesh)
    return {name: jax.ShapeDtypeStruct(*one, sharding=where) for name, one in shapes.items()}


def fit(
    ws: Workspace, name: str, objective: Objective, recipe: Recipe, params: Any, frozen: Any, image_size: int = 0
) -> Any:
    """Trains to the end of `recipe`, continuing from the newest checkpoint of this run if there is one.

    Args:
        ws: work directory, data, mesh.
        name: of the run; its checkpoints are `checkpoints/NAME.training`.
        objective: what to train.
        recipe: how.
        params: the start, on the mesh. They are consumed.
        frozen: parameters of the teacher, or None.
        image_size: of training, that of the objective's models; 0 is the workspace's.

    Returns:
        The trained parameters and the checkpoints, to be deleted once the artefact is written.
    """
    batch_size, source = ws.config["batch_size"], ws.source("train")
    preprocess = dataclasses.replace(ws.preprocess, size=image_size or ws.preprocess.size)
    batches = pipeline.training(
        source,
        preprocess,
        augment.parse(ws.config["augment"]),
        batch_size=batch_size,
        seed=ws.config["seed"],
        mix=mix.parse(ws.config["mix"]),
        rows=sharding.rows_of_process(ws.mesh, batch_size),
    )

    def blame(step: int, params: Any, batch: Any) -> str:
        found = divergence.source(objective.model, loss_of(objective), params, frozen, batch)
        images = ", ".join(map(str, pipeline.images(len(source), ws.config["seed"], batch_size, step)[:SHOWN]))
        return f"step {step}, in {found}, on the batch of images {images}, ... of data.train"

    with sharding.use(ws.mesh):
        fields = ws.config["accumulate"], ws.config["remat"]
        compiled = compile_step(objective, recipe, preprocess.size, ws.mesh, *fields)
        checkpoints = TrainCheckpoints(ws.path(f"{name}.training"), ws.config["checkpoint_every"])
        state = checkpoints.restore(compiled.abstract, batches)
        if state is None:
            state = train.init_state(params, compiled.tx, compiled.abstract)
        try:
            state = train.fit(
                name,
                state,
                compiled.step,
                frozen,
                batches,
                steps=recipe.steps,
                batch_size=batch_size,
                mesh=ws.mesh,
                checkpoints=checkpoints,
                metrics_path=ws.directory / "metrics.jsonl",
                log_every=ws.config["log_every"],
                learning_rate=train.schedule(recipe),
                blame=blame,
                tensorboard=ws.config["tensorboard"],
            )
        except BaseException:
            with contextlib.suppress(Exception):  # What is being saved is finished; the first error is the one to tell.
                checkpoints.close()
            raise
    return state["params"], checkpoints


def recipe(fields: Any, steps: int) -> Recipe:
    """A `Recipe` from the fields of `teacher` or `optimizer`."""
    names = {field.name for field in dataclasses.fields(Recipe)} - {"steps"}
    return Recipe(steps=steps, **{name: fields[name] for name in names})


def needs_teacher(options: Mapping[str, Any]) -> bool:
    """Whether a run looks at the teacher's parameters."""
    return any(options[name] for name in ("beta", "gamma", "delta", "bound"))


def objective(options: Mapping[str, Any], student: Any, teacher: Any, freeze: Sequence[str] = ()) -> Objective:
    """Towards what a run is trained, from its fields; `freeze` are paths of parameters to keep."""
    names = ("alpha", "beta", "gamma", "temperature", "teacher_forced", "normalized", "last_block", "delta", "bound")
    fields = {name: options[name] for name in names}
    return Objective(student, teacher, freeze_base=not options["train_base"], freeze=tuple(freeze), **fields)
