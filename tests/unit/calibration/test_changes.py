"""What another kernel does to the logits, against two whole models."""

import jax
import numpy as np
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.calibration.changes import Changes
from lraqvit_jax.devices import sharding
from tests.unit import small


@pytest.fixture(scope="module")
def measured():
    """A model on eight images, of which two are padding, in two batches."""
    rng = np.random.default_rng(0)
    params, images = small.params(small.plan(), rng), small.images(rng, 8)
    masks = np.array([True, True, True, True]), np.array([True, True, False, False])
    batches = [
        {"image": half, "label": np.zeros(4, np.int32), "mask": mask}
        for half, mask in zip((images[:4], images[4:]), masks, strict=True)
    ]
    placed = jax.device_put(params, sharding.replicated(small.MESH))
    return params, images[:6], Changes(small.model(), placed, batches, small.MESH)


def expected(params, images, path, kernel):
    """In float64, from the logits of the model with that kernel."""
    layer = trees.get(params, path)
    other = trees.replace(params, {path: {**layer, "kernel": kernel}})
    logits = [np.asarray(small.model().apply({"params": one}, images), np.float64) for one in (params, other)]
    moved = logits[1] - logits[0]
    moved -= moved.mean(-1, keepdims=True)
    return np.square(moved).sum() / len(images)


@pytest.mark.parametrize("path", [info.path for info in small.LAYERS])
def test_another_kernel_anywhere_changes_the_logits_by_what_two_models_say(rng, measured, path):
    params, images, changes = measured
    kernel = np.asarray(trees.get(params, path)["kernel"])
    other = (kernel + rng.normal(0, 0.1 * kernel.std(), kernel.shape)).astype(np.float32)
    want = expected(params, images, path, other)
    assert want > 0
    assert changes.of_kernel(path, other) == pytest.approx(want, rel=1e-3)
    assert changes.of_kernel(path, kernel) == 0


def test_a_layer_of_a_block_measures_alike_from_what_the_block_reads(rng, measured):
    params, _, changes = measured
    path = next(info.path for info in small.LAYERS if info.path.endswith("mlp/fc1"))
    block = path.removesuffix("/mlp/fc1")
    layer = trees.get(params, path)
    other = np.asarray(layer["kernel"]) + rng.normal(0, 0.05, layer["kernel"].shape).astype(np.float32)
    of_block = changes(block, {"mlp/fc1": {**layer, "kernel": other}})
    assert changes.of_kernel(path, other) == pytest.approx(of_block, rel=1e-5)
