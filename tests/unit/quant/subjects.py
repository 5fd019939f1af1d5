"""Small models to quantize, ViT and Swin, with random parameters and what their products read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.calibration import observe
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from tests.unit import small

CLASSES, IMAGES, RANK = 10, 4, 6


@dataclasses.dataclass(frozen=True)
class Subject:
    """A variant at a size; the layers of its encoder are pairs, or dense where the rank is 0."""

    name: str
    size: int
    rank: int = RANK

    @property
    def layers(self):
        return list(models.spec(self.name, num_classes=CLASSES, image_size=self.size).layers)

    def plan(self, **fields):
        """Every layer quantized."""
        layer = LayerPlan("quantized", 0, 8, **fields)
        return {info.path: dataclasses.replace(layer, rank=self.rank * info.compressible) for info in self.layers}

    def model(self, plan, **options):
        return models.create(self.name, num_classes=CLASSES, image_size=self.size, plan=plan, **options)

    @functools.cached_property
    def images(self):
        return np.random.default_rng(0).standard_normal((IMAGES, self.size, self.size, 3)).astype(np.float32)

    @functools.cached_property
    def params(self):
        """Of the float model: no leaf is zero or one."""
        rng, shapes = np.random.default_rng(1), small.unboxed(self.model(self.float_plan), self.images)
        return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)

    @property
    def float_plan(self):
        return plan_lib.low_rank(self.plan())

    @functools.cached_property
    def seen(self):
        rows = {"image": self.images, "mask": np.ones(IMAGES, bool)}
        return observe.inputs(self.model(self.float_plan), self.params, self.layers, [rows], small.MESH)

    @functools.cached_property
    def _float_model(self):
        return jax.jit(self.model(self.float_plan).apply)

    def float_logits(self, params):
        return np.asarray(self._float_model({"params": params}, self.images))

    def logits(self, result, **options):
        run = jax.jit(self.model(result.plan, **options).apply)
        return np.asarray(run({"params": result.params}, self.images))


SUBJECTS = {
    "vit": Subject("vit_pico", 8),
    "swin": Subject("swin_pico", 8, 0),  # 8 x 8 in windows of 4, then 4 x 4
    "swin_padded": Subject("swin_pico", 13),  # 13 padded to 16; merged into 7, padded to 8
}


def unrounded(kernel, rounded, target, layer):
    """A `round_kernel` that does not round: codes in float."""
    del rounded, target
    scale = jnp.max(jnp.abs(kernel), axis=0) / qarray.qmax(layer.kernel_bits)
    return qarray.QArray(kernel / scale, scale, layer.kernel_bits, 0, len(kernel))


def as_float(result):
    """Float parameters of the function that the quantized parameters stand for, had nothing been rounded."""
    changes = {}
    for path, layer in result.plan.items():
        if layer.form == "quantized":
            stored = trees.get(result.params, path)
            names = ("u", "v") if layer.rank else ("kernel",)
            weights = {name: np.asarray(stored[name]["qvalue"] * stored[name]["scale"]) for name in names}
            if layer.smoothed:
                weights[names[0]] = weights[names[0]] / stored["smooth"][:, None]
            changes[path] = weights | {name: stored[name] for name in stored if name == "bias"}
    return trees.replace(result.params, changes)
