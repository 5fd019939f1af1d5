"""What the trainings of a configuration take of each device: bytes and FLOPs, before anything is allocated.

Parameters, optimizer and batch follow exactly from shapes and shardings. Activations are what XLA's memory analysis
says of the compiled step where the mesh is that of this machine, and of any mesh by a formula: what differentiation
keeps of the forward pass for the rows of one micro-batch, and the gradient. The formula does not know what XLA fuses,
computes again or puts in the place of another array. FLOPs are those of the step as it is written, divided evenly.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config
from lraqvit_jax.data import mix
from lraqvit_jax.devices import sharding
from lraqvit_jax.devices.sharding import AXES, Mesh
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.options.training import Recipe
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.training import terms
from lraqvit_jax.training.objective import Objective, abstract_batch, compile_step, loss_of, of_run, rematerialized


class Training(NamedTuple):
    """One training of a configuration; `teacher` says whether it reads the teacher's parameters."""

    name: str
    objective: Objective
    recipe: Recipe
    image_size: int
    teacher: bool


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one device, and FLOPs of one device and step.

    Attributes:
        params: that are trained, or kept beside those.
        optimizer: its state, and the number of the step.
        teacher: frozen parameters.
        batch: images and labels.
        activations: everything else while a step runs, by the formula.
        temporary: the same by XLA's memory analysis; -1 where the mesh is not of this machine.
        flops: a device and step.
        whole: of the trained parameters, those that the mesh does not divide as the rules say: whole on every device.
    """

    params: int
    optimizer: int
    teacher: int
    batch: int
    activations: int
    temporary: int
    flops: float
    whole: int = 0

    @property
    def total(self) -> int:
        temporary = self.activations if self.temporary < 0 else self.temporary
        return self.params + self.optimizer + self.teacher + self.batch + temporary


def mesh_of(config: Config) -> Mesh:
    """The mesh of the configuration; an abstract one where this machine has another number of devices.

    Raises:
        UserError: a rule of `sharding` does not fit, or the sizes make no mesh.
    """
    sizes, rules = dataclasses.asdict(config.mesh), dataclasses.asdict(config.sharding)
    if min(sizes.values()) > 0 and math.prod(sizes.values()) != len(jax.devices()):
        return sharding.abstract_mesh(sizes, rules)
    return sharding.make_mesh(sizes, rules=rules)


def trainings(ws: Workspace) -> Iterator[Training]:
    """Everything that the configuration trains but the tuning of quantized models."""
    config, dtype = ws.config, ws.config.dtype
    dense = plan_lib.dense(ws.spec.layers)
    if config.teacher.steps:
        towards = Objective(ws.create(dense, dtype=dtype), label_smoothing=config.teacher.label_smoothing)
        recipe = Recipe.of(config.teacher, config.teacher.steps)
        yield Training("teacher", towards, recipe, ws.preprocess.size, False)
    for name, run in config.runs.items():
        size = run.image_size or ws.preprocess.size
        resized = dataclasses.replace(ws, preprocess=dataclasses.replace(ws.preprocess, size=size))
        pairs = plan_lib.low_rank(ws.plan, reparam.form(run.branch))
        towards = of_run(run, resized.create(pairs, dtype=dtype), resized.create(dense, dtype=dtype))
        # The number of steps costs no memory, and to know it would take the data.
        yield Training(name, towards, Recipe.of(config.optimizer, 1), size, bool(terms.needs(run.distillation)))


def of(config: Config, training: Training, mesh: Mesh) -> Estimate:
    """Estimates one training.

    Args:
        config: gives batch_size, accumulate, remat, mix.
        training: of it.
        mesh: where it is to run.
    """
    rows, parts, remat = config.batch_size, config.accumulate, config.remat
    with sharding.use(mesh):
        compiled = compile_step(training.objective, training.recipe, training.image_size, mesh, parts, remat)
        state = compiled.abstract
        frozen = _frozen(training, mesh)
        batch = abstract_batch(rows, training.image_size, mesh, mix.parse(config.mix) is not None)
        temporary = -1
        if not isinstance(mesh.devices, jax.sharding.AbstractMesh):
            temporary = compiled.step.lower(state, frozen, batch).compile().memory_analysis().temp_size_in_bytes
    params = sharding.bytes_per_device(state["params"])
    kept = rows // (mesh.spread("batch") * parts) * kept_per_image(training, remat)
    return Estimate(
        params=params,
        optimizer=sharding.bytes_per_device({"opt_state": state["opt_state"], "step": state["step"]}),
        teacher=sharding.bytes_per_device(frozen) if training.teacher else 0,
        batch=sharding.bytes_per_device(batch),
        activations=kept + params * (1 if parts == 1 else 2),
        temporary=temporary,
        flops=flops(training, rows, remat) / mesh.size(AXES),
        whole=sharding.left_whole(training.objective.model, training.image_size, mesh),
    )


def _frozen(training: Training, mesh: Mesh) -> Any:
    teacher: Any = training.objective.teacher
    return sharding.abstract_params(teacher, training.image_size, mesh) if training.teacher else None


def kept_per_image(training: Training, remat: str) -> int:
    """Bytes that differentiation keeps of the forward pass of one more image, on one device without a tensor axis."""
    alone = sharding.one_device()
    loss_fn = loss_of(rematerialized(training.objective, remat))
    params = sharding.abstract_params(training.objective.model, training.image_size, alone)
    frozen = _frozen(training, alone)

    def kept(params: Any, frozen: Any, batch: Any) -> Any:
        return jax.vjp(lambda params: loss_fn(params, frozen, batch), params, has_aux=True)[1]

    def size(rows: int) -> int:
        batch = abstract_batch(rows, training.image_size, alone)
        leaves = jax.tree.leaves(jax.eval_shape(kept, params, frozen, batch))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return size(2) - size(1)


def flops(training: Training, rows: int, remat: str) -> float:
    """FLOPs of a step on all rows, before any compiler changes it.

    JAX's CPU backend counts them, which is there beside any other: that of a GPU counts none before compiling, and
    after it not those in calls of libraries.

    Raises:
        UserError: JAX was told to have no CPU backend.
    """
    try:
        alone = sharding.one_device("cpu")
    except RuntimeError as error:
        raise UserError("FLOPs are counted by JAX's CPU backend; add cpu to JAX_PLATFORMS.") from error
    with sharding.use(alone):
        compiled = compile_step(training.objective, training.recipe, training.image_size, alone, 1, remat)
        frozen = _frozen(training, alone)
        batch = abstract_batch(rows, training.image_size, alone)
        return float(compiled.step.lower(compiled.abstract, frozen, batch).cost_analysis()["flops"])


def table(ws: Workspace) -> str:
    """A line for each training, and what the figures are."""
    heads = ("params", "optimizer", "teacher", "batch", "activations", "by XLA", "total", "GFLOP/step")
    lines = [f"{'MB of one device':<24}" + "".join(f"{head:>12}" for head in heads)]
    for training in trainings(ws):
        estimate = of(ws.config, training, ws.mesh)
        names = ("params", "optimizer", "teacher", "batch", "activations", "temporary", "total")
        shown = [
            f"{value / 1e6:>12,.1f}" if value >= 0 else f"{'-':>12}"
            for value in (getattr(estimate, name) for name in names)
        ]
        lines.append(f"{training.name:<24}" + "".join(shown) + f"{estimate.flops / 1e9:>12,.1f}")
        if estimate.whole:
            lines.append(
                f"  {estimate.whole / 1e6:,.1f} MB of its parameters have a dimension that the mesh does not divide."
            )
    if len(lines) == 1:
        raise UserError("The config trains nothing: teacher.steps is 0 and there are no runs.")
    shape = " x ".join(f"{axis} {size}" for axis, size in ws.mesh.shape.items())
    lines.append(f"Mesh {shape}, batch {ws.config.batch_size} in {ws.config.accumulate} micro-batches.")
    if isinstance(ws.mesh.devices, jax.sharding.AbstractMesh):
        lines.append("The mesh is not of this machine: the total holds activations by the formula (estimate.py).")
    else:
        lines.append(f"The total holds activations by XLA's memory analysis for {jax.devices()[0].device_kind}.")
    return "\n".join(lines)
