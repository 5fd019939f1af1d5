"""A small ViT with random weights, and what is needed to compress it."""

import jax
import numpy as np
from flax import linen as nn

from lraqvit_jax import models
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.devices.sharding import make_mesh
from lraqvit_jax.plan.records import LayerPlan, low_rank

MESH = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
SPEC = models.spec("vit_pico", num_classes=10, image_size=8)
LAYERS = list(SPEC.layers)
RANK = 6


def plan(form="dense", **fields):
    """Every encoder layer in `form` at rank RANK, the rest dense."""
    rank = 0 if form == "dense" else RANK
    return {info.path: LayerPlan(form, rank, **fields) if info.compressible else LayerPlan() for info in LAYERS}


def quantized_plan(rank, granularity):
    """Every layer in int8; encoder layers as pairs of that rank, or dense where it is 0."""
    return {info.path: LayerPlan("quantized", rank * info.compressible, 8, granularity) for info in LAYERS}


def model(one_plan=None, **options):
    return models.create("vit_pico", num_classes=10, image_size=8, plan=one_plan, **options)


def images(rng, count=6):
    return rng.standard_normal((count, 8, 8, 3)).astype(np.float32)


def params(one_plan, rng):
    """Random parameters of every leaf, biases and branches too."""
    shapes = unboxed(model(one_plan), images(rng, 1))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def unboxed(one_model, batch):
    """Shapes of a model's parameters."""
    shapes = jax.eval_shape(one_model.init, jax.random.key(0), batch)["params"]
    return jax.tree.map(lambda leaf: leaf.value, shapes, is_leaf=nn.meta.is_axis_metadata)


def seen(one_plan, values, batch):
    """Inputs of every product on `batch`."""
    rows = {"image": batch, "label": np.zeros(len(batch), np.int32), "mask": np.ones(len(batch), bool)}
    return statistics.inputs(model(one_plan), values, LAYERS, [rows], MESH)


def float_plan(one_plan):
    return low_rank(one_plan)


def apply(one_model, values, *given, **options):
    """`one_model.apply`, compiled as one program: operation by operation takes many times as long."""
    return jax.jit(lambda values, *given: one_model.apply({"params": values}, *given, **options))(values, *given)
