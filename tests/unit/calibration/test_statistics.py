"""Gradient moments against Jacobians; moments layer after layer against those of the model that they lead to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.devices import sharding
from tests.unit import small

MODELS = {"vit": ("vit_pico", 8), "swin": ("swin_pico", 32)}
EIGHT = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
DRAWS = 150


def rows(images, mask=None):
    mask = np.ones(len(images), bool) if mask is None else mask
    return {"image": images, "label": np.zeros(len(images), np.int32), "mask": mask}


@pytest.fixture(scope="module")
def gradients():
    """Moments over many draws of the projection: the same eight images, every second batch half padded with noise."""
    rng = np.random.default_rng(0)
    params, images = small.params(small.plan(), rng), small.images(rng, 8)
    whole = rows(images)
    halves = [
        rows(np.concatenate([half, 100 + small.images(rng, 4)]), np.arange(8) < 4) for half in (images[:4], images[4:])
    ]
    batches = [batch for _ in range(DRAWS // 2) for batch in (whole, *halves)]
    found = statistics.moments(small.model(), params, small.LAYERS, batches, EIGHT, gradients=True)
    return params, images, found


def jacobian_moment(params, images, path):
    """Sum over tokens and classes of J Jᵀ of the centred logits, mean over the images, one image at a time."""

    def logits(offset, image):
        def add(call, arguments, keywords, context):
            y = call(*arguments, **keywords)
            here = context.module.path == tuple(path.split("/")) and context.method_name == "__call__"
            return y + offset if here else y

        with nn.intercept_methods(add):
            one = small.model().apply({"params": params}, image[None])[0]
        return one - one.mean()

    info = next(layer for layer in small.LAYERS if layer.path == path)
    shape = (1, info.tokens, info.features_out) if info.tokens > 1 else (1, info.features_out)
    jacobians = jax.jit(jax.vmap(jax.jacrev(logits), (None, 0)))(jnp.zeros(shape), images)
    flat = np.asarray(jacobians, np.float64).reshape(-1, info.features_out)
    return flat.T @ flat / len(images)


@pytest.mark.parametrize("path", ["blocks_0/attn/qkv", "blocks_0/mlp/fc1", "blocks_1/mlp/fc2", "head"])
def test_the_gradient_moment_is_that_of_the_jacobian_of_the_logits(gradients, path):
    params, images, found = gradients
    want = jacobian_moment(params, images, path)
    assert np.linalg.norm(found[path].gradient - want) < 0.12 * np.linalg.norm(want)
    np.testing.assert_allclose(np.trace(found[path].gradient), np.trace(want), rtol=0.05)


def test_at_the_head_it_is_the_centring_of_the_classes(gradients):
    _, _, found = gradients
    want = np.eye(10) - 0.1
    np.testing.assert_allclose(found["head"].gradient, want, atol=0.15)


def test_inputs_are_counted_as_without_gradients(gradients):
    params, images, found = gradients
    plain = statistics.moments(small.model(), params, small.LAYERS, [rows(images)], EIGHT)
    for path, want in plain.items():
        assert want.gradient is None
        np.testing.assert_allclose(found[path].second, want.second, atol=1e-5 * np.abs(want.second).max())
        np.testing.assert_allclose(found[path].mean, want.mean, atol=1e-5 * np.abs(want.magnitude).max())


@pytest.fixture(scope="module", params=MODELS)
def dense(request):
    """A dense model on random weights, its encoder layers, images in two batches, the second padded."""
    name, size = MODELS[request.param]
    rng = np.random.default_rng(1)
    model = models.create(name, num_classes=10, image_size=size)
    spec = models.spec(name, num_classes=10, image_size=size)
    abstract = sharding.abstract_params(model, size, EIGHT)
    params = sharding.put(jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), abstract), abstract)
    images = rng.standard_normal((12, size, size, 3)).astype(np.float32)
    noise = 100 + rng.standard_normal((4, size, size, 3)).astype(np.float32)
    batches = [rows(images[:8]), rows(np.concatenate([images[8:], noise]), np.arange(8) < 4)]
    return model, params, [info for info in spec.layers if info.compressible], images, batches


def test_the_chain_is_the_model(dense):
    model, params, _, images, _ = dense
    _, features = small.apply(model, params, images, return_features=True)
    x, outputs = small.apply(model, params, images, method="embed"), []
    for path, part in model.chain():
        x = small.apply(part, trees.get(params, path), x)
        outputs.append(x)
    blocks = [one for one, (path, _) in zip(outputs, model.chain(), strict=True) if "downsample" not in path]
    for got, want in zip(blocks, features, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


def test_a_layer_that_stays_leaves_the_moments_of_the_dense_model(dense):
    model, params, layers, _, batches = dense
    want, visited = statistics.moments(model, params, layers, batches, EIGHT), []

    def stay(path, known):
        visited.append(path)
        for name in ("second", "mean", "magnitude"):
            close(getattr(known, name), getattr(want[path], name))
        close(known.cross, want[path].second)
        close(known.target_mean, want[path].mean)
        return trees.get(jax.device_get(params), path)

    statistics.sequential(model, params, layers, batches, EIGHT, stay)
    assert visited == [info.path for info in layers]


def test_a_layer_that_changes_is_seen_by_all_behind_it(dense):
    model, params, layers, images, batches = dense
    host, final = jax.device_get(params), {}

    def change(path, known):
        layer = trees.get(host, path)
        final[path] = known
        return {**layer, "kernel": 0.8 * layer["kernel"], "bias": layer["bias"] + 0.1}

    statistics.sequential(model, params, layers, batches, EIGHT, change)
    changed = {info.path: change(info.path, final[info.path]) for info in layers}
    abstract = sharding.abstract_params(model, images.shape[1], EIGHT)
    after = sharding.put(trees.replace(host, changed), abstract)
    want = statistics.moments(model, after, layers, batches, EIGHT)
    own, clean = (statistics.inputs(model, values, layers, batches, EIGHT) for values in (after, params))
    for info in layers:
        # What is behind a layer does not reach it: its moments are those of the finished model.
        close(final[info.path].second, want[info.path].second)
        x, t = (np.float64(seen[info.path]["x"].reshape(-1, info.features_in)) for seen in (own, clean))
        close(final[info.path].cross, x.T @ t / len(x))
        close(final[info.path].target_mean, t.mean(0))
    assert np.abs(final[layers[-1].path].cross - final[layers[-1].path].second).max() > 1e-3
