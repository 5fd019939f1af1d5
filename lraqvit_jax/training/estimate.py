"""What the trainings of a configuration take of each device: bytes and FLOPs, before anything is allocated.

Parameters, optimizer and batch follow exactly from shapes and shardings. Activations are what XLA's memory analysis
says of the compiled step where the mesh is that of this machine, and of any mesh by a formula: what differentiation
keeps of the forward pass for the rows of one micro-batch, and the gradient. The formula does not know what XLA fuses,
computes again or puts in the place of another array. FLOPs are those of the step as it is written, divided evenly.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import mix
from lraqvit_jax.devices import sharding
from lraqvit_jax.devices.sharding import AXES, Mesh
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.plan import records
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.training import fit as training
from lraqvit_jax.training.fit import Objective, Recipe


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


def mesh_of(config: Mapping[str, Any]) -> Mesh:
    """The mesh of the configuration; an abstract one where this machine has another number of devices.

    Raises:
        UserError: a rule of `sharding` does not fit, or the sizes make no mesh.
    """
    sizes, rules = config["mesh"], config["sharding"]
    if min(sizes.values()) > 0 and math.prod(sizes.values()) != len(jax.devices()):
        return sharding.abstract_mesh(sizes, rules)
    return sharding.make_mesh(sizes, rules=rules)


def trainings(ws: Workspace) -> Iterator[Training]:
    """Everything that the configuration trains but the tuning of quantized models."""
    config, dtype = ws.config, ws.config["dtype"]
    dense = records.dense(ws.spec.layers)
    if steps := config["teacher"]["steps"]:
        towards = Objective(ws.create(dense, dtype=dtype), label_smoothing=config["teacher"]["label_smoothing"])
        yield Training("teacher", towards, training.recipe(config["teacher"], steps), ws.preprocess.size, False)
    for name, options in config["runs"].items():
        size = options["image_size"] or ws.preprocess.size
        at = dataclasses.replace(ws, preprocess=dataclasses.replace(ws.preprocess, size=size))
        pairs = records.low_rank(ws.plan, reparam.form(options["branch"]))
        towards = training.objective(options, at.create(pairs, dtype=dtype), at.create(dense, dtype=dtype))
        # The number of steps costs no memory, and to know it would take the data.
        yield Training(name, towards, training.recipe(config["optimizer"], 1), size, training.needs_teacher(options))


def of(config: Mapping[str, Any], one: Training, mesh: Mesh) -> Estimate:
    """Estimates one training.

    Args:
        config: gives batch_size, accumulate, remat, mix.
        one: of it.
        mesh: where it is to run.
    """
    rows, parts, remat = config["batch_size"], config["accumulate"], config["remat"]
    with sharding.use(mesh):
        compiled = training.compile_step(one.objective, one.recipe, one.image_size, mesh, parts, remat)
        state = compiled.abstract
        frozen = _frozen(one, mesh)
        batch = training.abstract_batch(rows, one.image_size, mesh, mix.parse(config["mix"]) is not None)
        temporary = -1
        if not isinstance(mesh.devices, jax.sharding.AbstractMesh):
            temporary = compiled.step.lower(state, frozen, batch).compile().memory_analysis().temp_size_in_bytes
    params = sharding.bytes_per_device(state["params"])
    kept = rows // (mesh.spread("batch") * parts) * kept_per_image(one, remat)
    return Estimate(
        params=params,
        optimizer=sharding.bytes_per_device({"opt_state": state["opt_state"], "step": state["step"]}),
        teacher=sharding.bytes_per_device(frozen) if one.teacher else 0,
        batch=sharding.bytes_per_device(batch),
        activations=kept + params * (1 if parts == 1 else 2),
        temporary=temporary,
        flops=flops(one, rows, remat) / mesh.size(AXES),
        whole=sharding.left_whole(one.objective.model, one.image_size, mesh),
    )


def _frozen(one: Training, mesh: Mesh) -> Any:
    teacher: Any = one.objective.teacher
    return sharding.abstract_params(teacher, one.image_size, mesh) if one.teacher else None


def kept_per_image(one: Training, remat: str) -> int:
    """Bytes that differentiation keeps of the forward pass of one more image, on one device without a tensor axis."""
    alone = sharding.one_device()
    loss_fn = training.loss_of(training.rematerialized(one.objective, remat))
    params = sharding.abstract_params(one.objective.model, one.image_size, alone)
    frozen = _frozen(one, alone)

    def kept(params: Any, frozen: Any, batch: Any) -> Any:
        return jax.vjp(lambda params: loss_fn(params, frozen, batch), params, has_aux=True)[1]

    def size(rows: int) -> int:
        batch = training.abstract_batch(rows, one.image_size, alone)
        leaves = jax.tree.leaves(jax.eval_shape(kept, params, frozen, batch))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return size(2) - size(1)


def flops(one: Training, rows: int, remat: str) -> float:
    """FLOPs of a step on all rows, before any compiler changes it."""
    alone = sharding.one_device()
    with sharding.use(alone):
        compiled = training.compile_step(one.objective, one.recipe, one.image_size, alone, 1, remat)
        frozen = _frozen(one, alone)
        batch = training.abstract_batch(rows, one.image_size, alone)
        return float(compiled.step.lower(compiled.abstract, frozen, batch).cost_analysis()["flops"])


def table(ws: Workspace) -> str:
    """A line for each training, and what the figures are."""
    names = ("params", "optimizer", "teacher", "batch", "activations", "by XLA", "total", "GFLOP/step")
    lines = [f"{'MB of one device':<24}" + "".join(f"{name:>12}" for name in names)]
    for one in trainings(ws):
        found = of(ws.config, one, ws.mesh)
        cells = [found.params, found.optimizer, found.teacher, found.batch, found.activations, found.temporary]
        shown = [f"{value / 1e6:>12,.1f}" if value >= 0 else f"{'-':>12}" for value in (*cells, found.total)]
        lines.append(f"{one.name:<24}" + "".join(shown) + f"{found.flops / 1e9:>12,.1f}")
        if found.whole:
            lines.append(
                f"  {found.whole / 1e6:,.1f} MB of its parameters have a dimension that the mesh does not divide."
            )
    if len(lines) == 1:
        raise UserError("The config trains nothing: teacher.steps is 0 and there are no runs.")
    shape = " x ".join(f"{axis} {size}" for axis, size in ws.mesh.shape.items())
    lines.append(f"Mesh {shape}, batch {ws.config['batch_size']} in {ws.config['accumulate']} micro-batches.")
    if isinstance(ws.mesh.devices, jax.sharding.AbstractMesh):
        lines.append("The mesh is not of this machine: the total holds activations by the formula (estimate.py).")
    else:
        lines.append(f"The total holds activations by XLA's memory analysis for {jax.devices()[0].device_kind}.")
    return "\n".join(lines)
