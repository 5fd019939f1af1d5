"""`compress`: a dense model and some images in, a small model out; the stages of a work directory in one call."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from lraqvit_jax import config as config_lib
from lraqvit_jax import models, stages
from lraqvit_jax.api import model as inference
from lraqvit_jax.base import files, trees
from lraqvit_jax.base.errors import UserError, nearest, short, whole_number
from lraqvit_jax.config import Config
from lraqvit_jax.data import sources
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.sources import memory
from lraqvit_jax.devices import fingerprint, precision, sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.run import lock, opening
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.trace import compress as function
from lraqvit_jax.weights import tensors

STAGES = ("plan", "factorize", "distill", "merge", "quantize")
RUN = "low_rank"
BATCH = 32
FUNCTION_FIELDS = ("keep_dense", "multiple", "learning_rate", "seed")
"""What `fields` may have of a function; see `trace.compress`."""


@precision.usual()
def compress(
    model: nn.Module | Callable[..., Any],
    params: Mapping[str, Any],
    images: str | Iterable[Any],
    *,
    preprocess: Preprocess | None = None,
    budget: float = 0.5,
    bits: int = 8,
    quantizer: str = "dynamic",
    steps: int = 0,
    class_names: Sequence[str] = (),
    workdir: str | os.PathLike = "",
    fields: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    metric: str = "logits",
) -> Any:
    """Makes a dense model small: fewer channels in its heads, fewer hidden units, low-rank pairs; distillation if
    asked for; then integers.

    The sizes are those that move the logits least under the budget, measured on the images; labels are not needed.
    Nothing is trained where `steps` is 0.

    Example:
        >>> teacher, params, preprocess = lraqvit_jax.weights.load("timm:vit_tiny_patch16_224.safetensors")
        >>> small = lraqvit_jax.compress(teacher, params, "folder:PHOTOS", preprocess=preprocess, budget=0.7)
        >>> small.predict("photo.jpg", top=1)
        [[('tabby, tabby cat', 0.61)]]
        >>> small.export_onnx("small.onnx")

    Args:
        model: dense, of `weights.load` or `models.create`. Without classes, its features are what is to be kept.
        params: its parameters.
        images: some tens to thousands like those the model is for: PIL images, arrays of uint8 or paths; or a data
            source such as "folder:PHOTOS?labels=none".
        preprocess: of the model's images.
        budget: share of the parameters of the encoder's linear layers to keep, in (0, 1]; 1 keeps dense kernels.
        bits: of kernels and activations, 3 to 8; 0 stays in float32.
        quantizer: how, one of `config.QUANTIZERS`.
        steps: of distillation from the dense model, by its blocks and logits.
        class_names: in the order of the logits; () has numbers.
        workdir: where to keep artefacts, and to go on from when called again; "" keeps nothing.
        fields: any other field of `lraqvit_jax.config` by its dotted name, such as {"plan.method": "logits",
            "optimizer.learning_rate": 1e-4}; the run is called "low_rank", the quantizer "int8" (of 8 bits).
        mesh: where it is computed; None is all devices.
        metric: of a function: what is to be kept of its outputs, "logits", "features" or "loss".

    A function of parameters and a batch is compressed as well, `compress(apply, params, batches)`: then `images` are
    batches as it takes them; `budget`, `bits`, `quantizer`, `steps` and `metric` can be given, and as `fields` those of
    FUNCTION_FIELDS; what comes back is a `Function`; see `trace.compress`.

    Returns:
        The smallest model that was asked for, on one device.

    Raises:
        UserError: parameters that are not the model's, a budget, width or field that does not fit, bad images.
    """
    if fields is not None and not isinstance(fields, Mapping):
        raise UserError(f"fields is {short(repr(fields))}; give a mapping of dotted names and values.")
    if not isinstance(model, nn.Module) and callable(model):
        if (preprocess, tuple(class_names), workdir, mesh) != (None, (), "", None):
            raise UserError(
                "A function takes budget, bits, quantizer, steps, metric and fields alone; leave out the others."
            )
        if unknown := {*(fields or {})} - {*FUNCTION_FIELDS}:
            raise UserError(f"fields has {min(unknown)!r}; of a function it takes {', '.join(FUNCTION_FIELDS)}.")
        given: dict[str, Any] = {"budget": budget, "bits": bits, "quantizer": quantizer, "steps": steps}
        return function.compress(model, params, images, **given, metric=metric, **(fields or {}))
    if metric != "logits":
        raise UserError(f"metric is {short(repr(metric))}, and a model here is a classifier; give its apply instead.")
    function.check(budget, bits, quantizer)
    preprocess = checked(preprocess)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise UserError(f"mesh is {short(repr(mesh))}; give one of devices.sharding.make_mesh, or None.")
    kept = files.locate_new(workdir) if workdir else None
    steps = whole_number(steps, "steps", low=0)
    source, _held = memory.named(images)
    chosen = options(model, preprocess, source, budget, {bits: quantizer} if bits else {}, steps)
    set_fields(chosen, fields or {})
    config = config_lib.parse(chosen)
    with contextlib.ExitStack() as stack:
        folder = kept or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run(config, folder, params, mesh, class_names, STAGES, evaluates=False)
        return inference.load(folder, f"int{bits}" if bits else RUN)


def checked(preprocess: Any) -> Preprocess:
    """It, or UserError where it is something else."""
    if not isinstance(preprocess, Preprocess):
        raise UserError(f"preprocess is {short(repr(preprocess))}; give a Preprocess, such as weights.load returns.")
    return preprocess


def run(
    config: Config,
    folder: pathlib.Path,
    params: Mapping[str, Any],
    mesh: Mesh | None,
    class_names: Sequence[str],
    names: Sequence[str],
    evaluates: bool = True,
) -> None:
    """Runs stages in a work directory, of a teacher that is given.

    Args:
        config: of the run.
        folder: the work directory.
        params: of the teacher.
        mesh: where it is computed; None is all devices.
        class_names: of the classes, or ().
        names: of the stages.
        evaluates: whether there are labelled images.

    Raises:
        UserError: as of `compress`.
    """
    with lock.alone(folder):
        make_mesh = (lambda _: mesh) if mesh else None
        ws = opening.open_workspace(config, folder, make_mesh=make_mesh, evaluates=evaluates)
        ws = dataclasses.replace(ws, class_names=_names(class_names, ws.num_classes))
        _teacher(ws, params)
        for name in names:
            ws = stages.run(ws, name)


def options(
    model: Any, preprocess: Preprocess, source: str, budget: float, quantizers: Mapping[int, str], steps: int
) -> dict[str, Any]:
    """The configuration of a run that does what `compress` says."""
    config, name = config_lib.default(), models.name_of(model)
    count, devices = len(sources.load(source, "train")), jax.device_count()
    config.update(model=name, num_classes=model.num_classes, steps=steps)
    config.data.train, config.preprocess = source, dataclasses.asdict(preprocess)
    config.batch_size = config.eval_batch_size = -(-BATCH // devices) * devices
    config.plan.update(method="products" if budget < 1 else "by_kind", budget=budget)
    config.factorize.update(baselines=(), calibration_images=min(256, count))
    branch = "zero" if steps else "none"
    towards = config_lib.UNLABELLED | ({} if model.num_classes else {"gamma": 0.0})
    config.runs = {RUN: config_lib.run(decomposition="weighted_kfac", branch=branch, **towards)}
    config.optimizer.update(learning_rate=2e-5, warmup=min(20, steps))
    config.quant.update(source=RUN, dense=False, calibration_images=min(32, count))
    config.quant.methods = {
        f"int{bits}": config_lib.quantizer(**dataclasses.asdict(config_lib.QUANTIZERS[name]) | {"bits": bits})
        for bits, name in quantizers.items()
    }
    return config.to_dict()


def set_fields(config: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Sets fields by their dotted names; UserError for one that does not exist."""
    leaves = config_lib.leaves(config)
    for name, value in fields.items():
        if name not in leaves:
            raise UserError(f"The config has no field {name!r}; {nearest(name, leaves)}")
        *outer, last = name.split(".")
        tree = config
        for part in outer:
            tree = tree[part]
        tree[last] = value


def _names(names: Sequence[str], num_classes: int) -> list[str]:
    if names and len(names) != num_classes:
        raise UserError(f"There are {len(names):,} class_names for {num_classes:,} classes; give one for each.")
    return list(names)


def _plain(params: Any) -> Mapping[str, Any]:
    """Parameters as a mapping of arrays: without Flax's boxes, and without the collection that `init` puts them in."""
    params = nn.meta.unbox(params)
    if not isinstance(params, Mapping):
        raise UserError(f"params is {short(repr(params))}; give the nested mapping that weights.load returns.")
    return params["params"] if set(params) == {"params"} else params


def _teacher(ws: Workspace, params: Mapping[str, Any]) -> None:
    """Writes the artefact `dense`, as the stage teacher would; UserError where the parameters are not the model's."""
    plan = plan_lib.dense(ws.spec.layers)
    abstract = sharding.abstract_params(ws.create(plan), ws.preprocess.size, ws.mesh)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(abstract).items()}
    rules = {path: tensors.Rule((path,), np.asarray) for path in shapes}
    converted = tensors.convert(trees.flatten(_plain(params)), rules, shapes)
    tensors.check_finite(converted, "params")
    placed = sharding.put(converted, abstract)
    if not ws.has("dense"):
        ws.save("dense", placed, plan, parent="", notes="given", weights={"source": "", "sha256": ""})
    elif fingerprint.of(placed) != fingerprint.of(ws.load("dense", "teacher").params):
        raise UserError(f"{ws.directory} belongs to other params; name another workdir.")
