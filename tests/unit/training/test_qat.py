"""Fine-tuning of a quantized model: it starts as what it was, learns by LSQ's gradients, and ends in integers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.forms.quantized import InputGrid, quantized_product
from lraqvit_jax.options.training import Recipe
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant.fake_quant import Latent
from lraqvit_jax.training import loop as train
from lraqvit_jax.training import qat
from tests.unit import small
from tests.unit.quant.test_quantizers import FORMS, logits, quantized


@pytest.mark.parametrize(
    ("granularity", "fields"),
    [*FORMS[2:-1], pytest.param(*FORMS[-1], marks=pytest.mark.slow)],
    ids=str,
)
def test_it_starts_as_the_quantized_model_and_nothing_learned_gives_that_back(rng, granularity, fields):
    result, _, batch = quantized(rng, granularity, fields)
    start = qat.start(result.params, result.plan, small.LAYERS)
    want = logits(result.plan, result.params, batch, arithmetic="fake")
    np.testing.assert_allclose(
        logits(result.plan, start, batch, arithmetic="train"), want, atol=1e-4 * np.abs(want).max()
    )
    params, one = qat.finish(start, result.plan)
    assert {path: dataclasses.replace(layer, clip_z=0.0) for path, layer in one.items()} == result.plan
    for path, value in trees.flatten(result.params).items():
        assert np.array_equal(trees.flatten(params)[path], value), path


def test_a_learned_clip_goes_into_the_plan_and_is_what_the_integers_use(rng):
    result, _, batch = quantized(rng, "per_token_dynamic", {"bits": 4})
    start = qat.start(result.params, result.plan, small.LAYERS)
    flat = trees.flatten(start)
    flat |= {path: jnp.float32(0.8) for path in flat if path.endswith("x_clip")}
    flat |= {path: jnp.float32(1.2) for path in flat if path.endswith("z_clip")}
    params, one = qat.finish(trees.nest(flat), result.plan)
    check(one, small.LAYERS)
    assert one["blocks_0/mlp/fc1"].clip == pytest.approx(0.8)
    assert one["blocks_0/mlp/fc1"].clip_z == 1  # the range ends at the largest value
    want = logits(one, trees.nest(flat), batch, arithmetic="train")
    np.testing.assert_allclose(logits(one, params, batch), want, atol=1e-4 * np.abs(want).max())
    assert np.abs(want - logits(result.plan, result.params, batch)).max() > 1e-3 * np.abs(want).max()


def test_scales_have_lsqs_gradient_in_a_whole_layer(rng):
    """y = Q(x) Q(W): the gradient in the kernel's scale is x times round(w / s) - w / s inside, +-qmax outside."""
    x = rng.standard_normal((3, 5, 8)).astype(np.float32)
    kernel, scale = rng.standard_normal((8, 4)).astype(np.float32), np.float32([0.1, 0.2, 0.3, 0.5])
    layer, x_scale = LayerPlan("quantized", 0, 8, "per_tensor", weight_bits=4), np.float32(0.01)

    def out(scale):
        grid = InputGrid(scale=jnp.asarray(x_scale))
        return quantized_product(jnp.asarray(x), Latent(jnp.asarray(kernel), scale, 4, 0), grid, layer, "train")

    slope = jax.grad(lambda scale: jnp.sum(out(scale) ** 2) / 2)(jnp.asarray(scale))
    ratio = kernel.astype(np.float64) / scale
    lsq = np.where(np.abs(ratio) < 7, np.round(ratio) - ratio, 7 * np.sign(ratio))
    assert np.any(np.abs(ratio) > 7)
    rounded = np.clip(np.round(x.astype(np.float64) / x_scale), -127, 127) * x_scale
    y = rounded @ (np.clip(np.round(ratio), -7, 7) * scale)
    want = np.einsum("btn,btm,mn->n", y, rounded, lsq)
    np.testing.assert_allclose(slope, want, rtol=1e-3)


@pytest.mark.parametrize("rate", [pytest.param(0.0, marks=pytest.mark.slow), 1e-3], ids=["scales", "all"])
def test_a_few_steps_bring_the_model_nearer_to_its_teacher(rng, rate):
    result, params, batch = quantized(rng, "per_token", {"bits": 4})
    wanted = logits(small.float_plan(result.plan), params, batch)
    start = qat.start(result.params, result.plan, small.LAYERS)
    flat = trees.flatten(start)
    keep = trees.nest({path: not (rate or qat.learned_scale(path)) for path in flat})
    scales = trees.nest({path: qat.learned_scale(path) for path in flat})
    recipe = Recipe(steps=40, learning_rate=rate or 1e-2)
    tx = train.optimizer(recipe, lambda _: keep, (1e-2 / recipe.learning_rate, lambda _: scales))
    model = small.model(result.plan, arithmetic="train")

    @jax.jit
    def step(values, state):
        loss, slope = jax.value_and_grad(
            lambda values: jnp.mean(jnp.square(model.apply({"params": values}, batch) - wanted))
        )(values)
        updates, state = tx.update(slope, state, values)
        return optax.apply_updates(values, updates), state, loss

    values, state, losses = start, tx.init(start), []
    for _ in range(40):
        values, state, loss = step(values, state)
        losses.append(float(loss))
    assert min(losses[-5:]) < 0.7 * losses[0]
    tuned, one = qat.finish(values, result.plan)
    got = np.mean(np.square(logits(one, tuned, batch) - wanted))
    assert got < 0.7 * np.mean(np.square(logits(result.plan, result.params, batch) - wanted))
    moved = {path for path, value in trees.flatten(values).items() if not np.array_equal(value, flat[path])}
    assert any(qat.learned_scale(path) for path in moved)
    assert any(not qat.learned_scale(path) for path in moved) == (rate > 0)


def test_a_layer_norms_scale_is_no_scale_of_a_grid():
    named = ["blocks_0/norm1/scale", "blocks_0/mlp/fc1/u/scale", "head/kernel/scale", "head/x_clip", "pos_embed"]
    assert [qat.learned_scale(path) for path in named] == [False, True, True, True, False]
