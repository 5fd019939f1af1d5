"""What is trained and towards what, and the compiled step for it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lraqvit_jax.base import trees
from lraqvit_jax.devices import sharding
from lraqvit_jax.options.training import Distillation, Recipe, Run
from lraqvit_jax.training import loop, qat, step


@dataclasses.dataclass(frozen=True)
class Objective:
    """Hashable, so that runs that differ only in their start share one compilation.

    Attributes:
        model: trained.
        teacher: dense model, or None for training on labels alone.
        distillation: the terms of the loss; None for labels alone.
        label_smoothing: of the cross-entropy.
        freeze_base: keep the factors u and v of reparam layers, train their branches and all else.
        freeze: paths of further parameters to keep.
        scale_ratio: above 0, by how much more than the learning rate the scales of quantized layers move, as a share of
            themselves.
    """

    model: nn.Module
    teacher: nn.Module | None = None
    distillation: Distillation | None = None
    label_smoothing: float = 0.0
    freeze_base: bool = False
    freeze: tuple[str, ...] = ()
    scale_ratio: float = 0.0


def of_run(run: Run, student: Any, teacher: Any, freeze: Sequence[str] = ()) -> Objective:
    """Towards what a run is trained; `freeze` are paths of parameters to keep."""
    return Objective(student, teacher, run.distillation, freeze_base=not run.train_base, freeze=tuple(freeze))


class Compiled(NamedTuple):
    """A step function with the optimizer and the abstract state it belongs to."""

    step: Any
    tx: Any
    abstract: loop.State


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
        remat: of the blocks of the model that is trained; see `linear.LinearOptions`.
    """
    objective = rematerialized(objective, remat)
    abstract = sharding.abstract_params(objective.model, image_size, mesh)
    some = objective.freeze_base or objective.freeze
    relative = (objective.scale_ratio, _scales) if objective.scale_ratio else None
    tx = loop.optimizer(recipe, functools.partial(kept, objective) if some else None, relative)
    state = loop.abstract_state(abstract, tx, mesh)
    shared = step.shared(objective.teacher, objective.distillation)
    return Compiled(loop.make_step(loss_of(objective), tx, state, mesh, micro_batches, shared), tx, state)


def loss_of(objective: Objective) -> loop.LossFn:
    """The function that a step differentiates."""
    if objective.teacher is None or objective.distillation is None:
        return step.supervised(objective.model, objective.label_smoothing)
    return step.distillation(objective.model, objective.teacher, objective.distillation, objective.label_smoothing)


def rematerialized(objective: Objective, remat: str) -> Objective:
    """The same with the blocks of the trained model as `remat` says; see `linear.LinearOptions`."""
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
    return {name: jax.ShapeDtypeStruct(*shape, sharding=where) for name, shape in shapes.items()}
