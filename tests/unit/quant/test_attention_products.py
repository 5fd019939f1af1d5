"""The products of attention on integers, against NumPy in float64."""

import dataclasses

import jax
import numpy as np
import pytest

from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.options.quant import ATTENTION
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import attention
from tests.unit import small
from tests.unit.quant.test_quantizers import quantized

BITS = (8, 6, 4)


def layer_of(kind, bits=8):
    return LayerPlan("quantized", 0, bits, attention=kind)


def parts(rng, tokens=7, heads=3, dim=6):
    query, key, value = (rng.normal(0, 1.5, (2, tokens, heads, dim)).astype(np.float32) for _ in range(3))
    scores = rng.gumbel(0, 3, (2, heads, tokens, tokens))
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return query, key, value, weights.astype(np.float32)


def snap(x, axis, bits):
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(x).max(axis, keepdims=True) / limit
    return np.clip(np.round(x / scale), -limit, limit) * scale


@pytest.mark.parametrize("bits", BITS)
def test_query_and_key_are_rounded_token_by_token(rng, bits):
    query, key, _, _ = (part.astype(np.float64) for part in parts(rng))
    want = np.einsum("bqhd,bkhd->bhqk", snap(query, -1, bits), snap(key, -1, bits))
    got = attention.logits(query, key, layer_of("uniform", bits), "integer")
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("bits", BITS)
def test_a_uniform_softmax_has_a_grid_for_each_query(rng, bits):
    _, _, value, weights = (part.astype(np.float64) for part in parts(rng))
    high, low = weights.max(-1, keepdims=True), weights.min(-1, keepdims=True)
    limit = 2 ** (bits - 1) - 1
    scale = (high - low) / 2 / limit
    center = np.round((high + low) / 2 / scale) * scale
    grid = np.clip(np.round((weights - center) / scale), -limit, limit) * scale + center
    want = np.einsum("bhqk,bkhd->bqhd", grid, snap(value, 1, bits))
    got = attention.mix(weights, value, layer_of("uniform", bits), "integer")
    # A weight on the border between two integers may fall to either side in float32.
    assert np.linalg.norm(got - want) < 0.02 * 2 ** (8 - bits) * np.linalg.norm(want)
    assert np.median(np.abs(got - want)) < 1e-5


@pytest.mark.parametrize("bits", [4, 6])
def test_a_log_softmax_has_powers_of_the_root_of_two(rng, bits):
    _, _, value, weights = (part.astype(np.float64) for part in parts(rng, tokens=40))
    largest = weights.max(-1, keepdims=True)
    steps = np.round(-2 * np.log2(weights / largest))
    grid = np.where(steps < 2**bits - 1, largest * 2.0 ** (-steps / 2), 0)
    assert np.any(grid == 0) or bits > 4
    assert np.max(np.abs(np.log2(grid[grid > 0] / weights[grid > 0]))) <= 0.2501
    want = np.einsum("bhqk,bkhd->bqhd", grid, snap(value, 1, bits))
    got = attention.mix(weights.astype(np.float32), value, layer_of("log_sqrt2", bits), "integer")
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("kind", ATTENTION)
def test_the_float_twin_computes_the_same_and_is_differentiable(rng, kind):
    query, key, value, weights = parts(rng)
    layer = layer_of(kind)
    for function, arguments in ((attention.logits, (query, key)), (attention.mix, (weights, value))):
        integer, fake = (function(*arguments, layer, arithmetic) for arithmetic in ("integer", "fake"))
        np.testing.assert_allclose(integer, fake, atol=1e-5 * np.abs(fake).max())
        slopes = jax.grad(lambda pair: function(*pair, layer, "fake").sum())(arguments)  # noqa: B023
        exact = jax.grad(lambda pair: function(*pair, layer_of("float"), "fake").sum())(arguments)  # noqa: B023
        for slope, want in zip(slopes, exact, strict=True):
            # The ends of a range move its grid too; all else passes straight through.
            assert np.vdot(slope, want) > 0.85 * np.linalg.norm(slope) * np.linalg.norm(want)


@pytest.mark.parametrize("name", ["vit_pico", pytest.param("swin_pico", marks=pytest.mark.slow)])
def test_a_model_with_integer_attention_is_close_to_the_one_without(rng, name):
    spec = models.spec(name, num_classes=10, image_size=8)
    images = small.images(rng)
    values = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        small.unboxed(models.create(name, num_classes=10, image_size=8), images),
    )

    def logits(bits, kind):
        # Kernels in float: only the entries of qkv tell the products of attention what to do.
        one = {info.path: LayerPlan() for info in spec.layers}
        one |= {path: LayerPlan("dense", 0, bits, attention=kind) for path in one if path.endswith("/qkv")}
        model = models.create(name, num_classes=10, image_size=8, plan=one)
        return np.asarray(jax.jit(model.apply)({"params": values}, images))

    exact = logits(8, "float")
    errors = [np.linalg.norm(logits(bits, "uniform") - exact) / np.linalg.norm(exact) for bits in (8, 4)]
    assert 1e-5 < errors[0] < 0.03
    assert errors[0] < errors[1] < 0.6


def test_only_a_quantized_qkv_can_have_it():
    one = small.quantized_plan(0, "per_token")
    one["blocks_0/attn/qkv"] = dataclasses.replace(one["blocks_0/attn/qkv"], attention="uniform")
    check(one, small.LAYERS)
    for path, change, says in (
        ("blocks_0/mlp/fc1", {"attention": "uniform"}, "only a quantized 'qkv'"),
        ("blocks_0/attn/qkv", {"attention": "unifrom"}, "did you mean 'uniform'"),
    ):
        with pytest.raises(UserError, match=says):
            check(one | {path: dataclasses.replace(one[path], **change)}, small.LAYERS)


def test_a_whole_integer_model_runs_as_its_twin_says(rng):
    result, _, batch = quantized(rng, "per_token_dynamic", {})
    integer_plan = {
        path: dataclasses.replace(layer, attention="uniform") if path.endswith("/qkv") else layer
        for path, layer in result.plan.items()
    }
    integer, fake = (
        np.asarray(jax.jit(small.model(integer_plan, arithmetic=kind).apply)({"params": result.params}, batch))
        for kind in ("integer", "fake")
    )
    np.testing.assert_allclose(integer, fake, atol=1e-4 * np.abs(fake).max())
