"""Fake quantization: its gradients in closed form, and its identity with the integer path in a whole model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.options.quant import GRANULARITIES, Quantizer
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.fake_quant import fake_codes, fake_quant, round_ste
from lraqvit_jax.quant.quantize import quantize
from tests.unit import small


def test_it_rounds_to_the_grid(rng):
    x, scale = rng.normal(0, 1, (20, 30)).astype(np.float32), 0.013
    want = np.round(np.clip(x.astype(np.float64) / scale, -127, 127)) * scale
    np.testing.assert_allclose(fake_quant(jnp.asarray(x), scale), want, atol=1e-6)


def test_its_codes_are_those_of_the_integer_path(rng):
    x, scale = jnp.asarray(rng.normal(0, 1, (200, 30)), jnp.float32), jnp.float32(0.013)
    assert np.array_equal(jax.jit(fake_codes)(x, scale), jax.jit(qarray.codes)(x, scale))


def test_rounding_passes_the_gradient_straight_through():
    x = jnp.array([-1.7, 0.2, 3.5])
    assert np.array_equal(round_ste(x), jnp.round(x))
    assert np.asarray(jax.grad(lambda x: jnp.sum(round_ste(x)))(x)).tolist() == [1, 1, 1]


def test_the_gradient_in_x_is_one_inside_the_range_and_zero_outside(rng):
    scale = 0.01  # clips at 1.27
    x = jnp.asarray(np.concatenate([rng.normal(0, 1, 500), [-5, -1.28, -1.26, 0, 1.26, 1.28, 5]]), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(fake_quant(x, scale)))(x)
    np.testing.assert_allclose(gradient, np.abs(x) < 1.27, atol=1e-6)
    assert 0 < float(jnp.mean(gradient)) < 1


@pytest.mark.parametrize("bits", [8, 4])
def test_the_gradient_in_the_scale_is_lsqs(rng, bits):
    """round(v) - v inside and +-qmax outside, v = x / s (Esser et al. 2020)."""
    limit = 2 ** (bits - 1) - 1
    x, scale = rng.normal(0, 1, 300).astype(np.float32), np.float32(1.3 / limit)
    gradient = jax.jacobian(lambda s: fake_quant(jnp.asarray(x), s, bits))(jnp.asarray(scale))
    v = x.astype(np.float64) / scale
    want = np.where(np.abs(v) < limit, np.round(v) - v, limit * np.sign(v))
    assert 0.05 < np.mean(np.abs(v) > limit) < 0.5
    np.testing.assert_allclose(gradient, want, atol=1e-4 * limit)


def test_a_clipping_range_can_be_learned_by_its_gradient(rng):
    """For a bell curve on 15 steps the best range is well inside the largest value."""
    x = jnp.asarray(rng.standard_normal(2000), jnp.float32)

    def loss(log_scale):
        return jnp.mean(jnp.square(fake_quant(x, jnp.exp(log_scale), 4) - x))

    start = jnp.log(jnp.max(jnp.abs(x)) / 7)
    descend = jax.jit(lambda value: value - 2 * jax.grad(loss)(value))
    end = start
    for _ in range(60):
        end = descend(end)
    assert float(loss(end)) < 0.8 * float(loss(start))


# --- whole models ---


@functools.cache
def float_model(rank):
    """A float model with random weights, images, and what every product reads on them."""
    rng = np.random.default_rng(rank)
    plan = small.float_plan(small.quantized_plan(rank, "per_tensor"))
    params, batch = small.params(plan, rng), small.images(rng)
    return params, batch, small.seen(plan, params, batch)


@functools.cache
def smoothed_model(rank, granularity):
    """int8 with SmoothQuant vectors; the clip makes the largest inputs saturate."""
    params, batch, seen = float_model(rank)
    plan = small.quantized_plan(rank, granularity)
    plan = {path: dataclasses.replace(layer, clip=0.98) for path, layer in plan.items()}
    return quantize(params, plan, small.LAYERS, seen, Quantizer(method="smoothquant")), batch


@functools.cache
def logits(rank, granularity, arithmetic):
    result, batch = smoothed_model(rank, granularity)
    return np.asarray(jax.jit(small.model(result.plan, arithmetic=arithmetic).apply)({"params": result.params}, batch))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rank", [0, small.RANK], ids=["dense", "low_rank"])
def test_integer_and_fake_arithmetic_agree_bit_for_bit(rank, granularity):
    result, _ = smoothed_model(rank, granularity)
    smoothed = {path for path, layer in result.plan.items() if layer.smoothed}
    assert {"patch_embed", "blocks_0/attn/proj", "blocks_1/mlp/fc2", "head"} <= smoothed
    integer, fake = (logits(rank, granularity, arithmetic) for arithmetic in ("integer", "fake"))
    assert np.array_equal(integer, fake)
    assert np.unique(integer).size > integer.size // 2  # logits, not a constant


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rank", [0, small.RANK], ids=["dense", "low_rank"])
def test_eight_bits_stay_near_the_float_model(rank, granularity):
    params, batch, _ = float_model(rank)
    plan = small.float_plan(smoothed_model(rank, granularity)[0].plan)
    exact = np.asarray(jax.jit(small.model(plan).apply)({"params": params}, batch))
    error = np.linalg.norm(logits(rank, granularity, "integer") - exact) / np.linalg.norm(exact)
    assert 1e-6 < error < 0.05


def test_every_kernel_of_a_quantized_model_is_int8():
    result, _ = smoothed_model(small.RANK, "per_token")
    for info in small.LAYERS:
        layer = trees.get(result.params, info.path)
        kernels = [layer[name] for name in ("kernel", "u", "v") if name in layer]
        assert kernels
        assert all(kernel["qvalue"].dtype == jnp.int8 for kernel in kernels)


def image_gradient(model, params, batch):
    loss = jax.grad(lambda images: jnp.sum(model.apply({"params": params}, images) ** 2))
    return np.asarray(jax.jit(loss)(batch)).ravel()


@pytest.mark.parametrize("granularity", ["per_tensor", "per_token_dynamic"])
def test_the_fake_model_is_differentiable_in_its_images(granularity):
    """And its gradient points where the float model's does."""
    params, batch, _ = float_model(small.RANK)
    result, _ = smoothed_model(small.RANK, granularity)
    exact = image_gradient(small.model(small.float_plan(result.plan)), params, batch)
    fake = image_gradient(small.model(result.plan, arithmetic="fake"), result.params, batch)
    assert np.isfinite(fake).all()
    assert exact @ fake > 0.8 * np.linalg.norm(exact) * np.linalg.norm(fake)
