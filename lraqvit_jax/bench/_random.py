"""The models to time: artefacts, or random weights in every form, which take a runtime as long as any of a shape."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from lraqvit_jax.base import files, trees
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.devices import sharding
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan import check as plan_check
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.plan.files import read_plan, to_json
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, Plan, dense, merged, pivoted, resolved
from lraqvit_jax.quant import qarray
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts

PREFIX = "random:"
SHAPES = ("dense", "low_rank", "pivoted", "products")
"""Of the layers: as in the dense model; as the plan says; the same ranks, each pair with an identity block; narrower
heads with identity blocks and fewer hidden units, without pairs, of as many parameters as the plan has."""
FORMS = {
    f"{integers}{shape}{dynamic}": (shape, granularity)
    for integers, dynamic, granularity in (
        ("", "", ""),
        ("int8_", "", "per_tensor"),
        ("int8_", "_dynamic", "per_token_dynamic"),
    )
    for shape in SHAPES
}
"""The shape, and the granularity of the activations' scales; "" is float."""
STEPS, HEAD, HIDDEN = 256, 4, 8
"""Of "products": shares that are tried, and of what the channels of a head and hidden units are multiples."""
NARROW = "_7"
"""Ends the name of an int8 form whose kernels have 7 bits."""
KERNELS = ("kernel", "u", "v")
OTHER = "@"
"""Before the path of a plan.json, where it is not that of the work directory: "random:low_rank@DIR/plan.json"."""


def form(name: str) -> tuple[str, str, int]:
    """The shape of "random:low_rank", its granularity, and the bits of its kernels; UserError for no form."""
    kind = name.removeprefix(PREFIX).partition(OTHER)[0]
    plain = kind.removesuffix(NARROW)
    if plain not in FORMS or (plain != kind and not FORMS[plain][1]):
        forms = [*FORMS, *(f"{one}{NARROW}" for one, (_, granularity) in FORMS.items() if granularity)]
        raise UserError(f"latency.models has {name!r}, which is not a form; {nearest(kind, forms)}")
    return *FORMS[plain], 8 if plain == kind else 7


def check(ws: Workspace, names: Iterable[str]) -> None:
    """UserError for a form or an artefact that there is not."""
    for name in names:
        if name.startswith(PREFIX):
            plan_of(ws, name)
        else:
            artifacts.read_meta(_path(ws, name))


def load(ws: Workspace, name: str) -> artifacts.Artifact:
    """An artefact, by its name in the work directory or its path, or one with random weights."""
    return artifact(ws, name) if name.startswith(PREFIX) else artifacts.load_artifact(_path(ws, name))


def plan_of(ws: Workspace, name: str) -> Plan:
    """The float plan of "random:FORM": one of SHAPES, of the work directory's plan or of that in the file behind OTHER.
    UserError for no form, or a file that is no plan of the model."""
    shape, path = form(name)[0], name.partition(OTHER)[2]
    if path and shape == "dense":
        raise UserError(f"latency.models has {name!r}; a dense form has no plan: leave out {OTHER + path!r}.")
    plan: Plan = ws.plan
    if path:
        plan = read_plan(files.locate(path))
        plan_check.check(plan, ws.spec.layers)
    return _shaped(ws.spec.layers, merged(plan), shape)


def _shaped(layers: Sequence[LinearInfo], plan: Plan, shape: str) -> Plan:
    """The deployed float plan of one of SHAPES that a deployed float plan gives."""
    if shape == "dense":
        return dense(layers)
    if shape == "products":
        return _products(layers, plan)
    if shape == "low_rank":
        return plan
    infos = {info.path: info for info in resolved(layers, plan)}
    return {
        path: pivoted(infos[path], layer.rank, layer.width) if layer.rank else layer for path, layer in plan.items()
    }


def _products(layers: Sequence[LinearInfo], plan: Plan) -> Plan:
    """Blocks by what their function depends on (`plan.blocks`), all narrowed by one share: the largest with which the
    model has no more parameters than with `plan`. What that leaves dense stays dense."""
    parts = [block for block in blocks.blocks(layers) if _factorized(block, plan)]
    most, made = total_cost(plan, layers).params, plan
    for step in range(STEPS, 0, -1):
        sizes = {block.path: _narrowed(blocks.full(block), step / STEPS) for block in parts}
        made = blocks.plan_of(layers, sizes)
        if total_cost(made, layers).params <= most:
            break
    return made


def _factorized(block: blocks.Block, plan: Plan) -> bool:
    """Whether a plan has anything but dense kernels in a block."""
    return any(layer != LayerPlan() for path, layer in plan.items() if path.startswith(f"{block.path}/"))


def _narrowed(whole: blocks.Sizes, share: float) -> blocks.Sizes:
    def part(size: int, multiple: int) -> int:
        return min(size, max(multiple, int(size * share) // multiple * multiple))

    return blocks.Sizes(part(whole.score, HEAD), part(whole.value, HEAD), part(whole.width, HIDDEN))


def _path(ws: Workspace, name: str) -> pathlib.Path:
    return ws.path(name) if ws.has(name) else files.locate(name)


def artifact(ws: Workspace, name: str) -> artifacts.Artifact:
    """A model of the configuration's shapes and ranks, with random weights.

    Args:
        ws: gives model, classes, image size, plan.
        name: PREFIX and one of FORMS, with NARROW behind an int8 one or not, and OTHER with a plan or not.
    """
    _, granularity, bits = form(name)
    plan = plan_of(ws, name)
    params = _draw(ws, plan)
    if granularity:
        params, plan = _quantize(ws, params, plan, granularity, bits)
    meta = {"name": name, "model": ws.model, "num_classes": ws.num_classes, "class_names": None}
    meta |= {"plan": to_json(plan), "preprocess": ws.preprocess.to_json()}
    return artifacts.Artifact(artifacts.build(meta), params, ws.preprocess, meta)


def _draw(ws: Workspace, plan: Plan) -> Any:
    """Normal kernels that keep the variance of what they multiply, small offsets, scales of norms near 1; the channels
    that an identity block copies are any."""
    rng = np.random.default_rng(0)
    infos = {info.path: info for info in resolved(ws.spec.layers, plan)}

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        layer, _, last = path.rpartition("/")
        if last == "basis":
            info, rows = infos[layer], np.prod(leaf.shape[:-1], dtype=int)
            count = info.features_in if plan[layer].basis == "input" else info.features_out
            chosen = [np.sort(rng.permutation(count)[: leaf.shape[-1]]) for _ in range(rows)]
            return np.reshape(chosen, leaf.shape).astype(leaf.dtype)
        spread = leaf.shape[0] ** -0.5 if last in KERNELS else 0.02
        return np.float32(last == "scale") + np.float32(spread) * rng.standard_normal(leaf.shape, np.float32)

    abstract = trees.flatten(sharding.abstract_params(ws.create(plan), ws.preprocess.size, sharding.one_device()))
    return trees.nest({path: draw(path, leaf) for path, leaf in abstract.items()})


def _quantize(ws: Workspace, params: Any, plan: Plan, granularity: str, bits: int) -> tuple[Any, Plan]:
    """Integers to the nearest in every layer that `quant` says, the scales of activations from the range of noise."""
    size, quant = ws.preprocess.size, ws.config.quant
    infos = resolved(ws.spec.layers, plan)
    layers = [info for info in infos if info.compressible or quant.embedding_and_head]
    images = np.random.default_rng(1).standard_normal((1, size, size, 3), np.float32)
    batch: Any = {"image": images, "mask": np.ones(1, bool)}
    seen = statistics.inputs(ws.create(plan), params, layers, [batch], sharding.one_device())
    changed, weights, paths = dict(plan), {}, [info.path for info in layers]
    layer_params = {path: trees.get(params, path) for path in paths}
    kernels = {
        path: {name: value for name, value in layer_params[path].items() if name in ("kernel", "u", "v")}
        for path in paths
    }
    integers, scales = _round(kernels, seen, granularity, bits)
    for path in paths:
        changed[path] = dataclasses.replace(
            plan[path], form="quantized", bits=8, granularity=granularity, weight_bits=bits
        )
        weights[path] = {**layer_params[path], **integers[path]}
        if granularity != "per_token_dynamic":
            weights[path] |= {f"{part}_scale": scale for part, scale in scales[path].items()}
    return artifacts.host(trees.replace(params, weights)), changed


@functools.partial(jax.jit, static_argnames=("granularity", "bits"))
def _round(kernels: Any, seen: Any, granularity: str, bits: int) -> tuple[Any, Any]:
    """All kernels on integers, and the scales of what they read; one program compiles faster than its parts."""
    scales = jax.tree.map(lambda x: qarray.input_scale(x, granularity), seen)
    return jax.tree.map(lambda kernel: qarray.quantize_kernel(kernel, bits).stored(), kernels), scales
