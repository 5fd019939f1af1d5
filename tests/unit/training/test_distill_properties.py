"""Corners of the losses, of teacher forcing and of the optimizer that a formula does not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.options.training import Distillation, Recipe
from lraqvit_jax.training import loop as train
from lraqvit_jax.training import objective as training
from lraqvit_jax.training import step
from lraqvit_jax.training.losses import block_mse, cross_entropy
from tests.unit import small

DENSE, STUDENT = small.plan(), small.plan("reparam")


def features(rng, blocks=3):
    return [rng.standard_normal((4, 5, 6)).astype(np.float32) for _ in range(blocks)]


def test_block_mse_of_low_precision_features_is_taken_in_float32(rng):
    teacher = [jnp.asarray(one, jnp.bfloat16) for one in features(rng)]
    student = [jnp.asarray(one, jnp.bfloat16) for one in features(rng)]
    got = block_mse(teacher, student)
    wide = [[np.asarray(one, np.float64) for one in side] for side in (teacher, student)]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [np.mean((t - s) ** 2) for t, s in zip(*wide, strict=True)], rtol=1e-6)


def test_blocks_of_another_number_or_shape_are_refused(rng):
    one = features(rng)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        block_mse(one, features(rng, 2))
    with pytest.raises(AssertionError):
        block_mse(one, [feature[:, :1] for feature in one])


def test_unlabelled_images_give_no_gradient(rng):
    logits = jnp.asarray(rng.standard_normal((3, 10)), jnp.float32)
    some = jax.grad(cross_entropy)(logits, jnp.array([2, -1, 5]), 0.1)
    assert [bool(np.any(row)) for row in np.asarray(some)] == [True, False, True]
    none = jax.grad(cross_entropy)(logits, jnp.full(3, -1))
    assert np.array_equal(none, np.zeros((3, 10)))


@functools.cache
def scene():
    rng = np.random.default_rng(0)
    teacher, student = (small.params(one, rng) for one in (DENSE, STUDENT))
    labels = np.array([3, -1, 0, 9, 5, 5], np.int32)
    return teacher, student, {"image": small.images(rng), "label": labels}


def test_without_beta_the_teacher_is_not_run():
    _, student, batch = scene()
    loss_fn = step.distillation(small.model(STUDENT), small.model(DENSE), Distillation(beta=0.0))
    loss, metrics = jax.jit(loss_fn)(student, None, batch)
    assert "kd" not in metrics
    assert float(loss) == float(metrics["ce"])


def test_a_forced_block_depends_on_the_teachers_stream_and_not_on_the_blocks_before():
    teacher, student, batch = scene()
    model = small.model(STUDENT)
    free = jax.jit(functools.partial(model.apply, return_features=True))
    forced = jax.jit(functools.partial(model.apply, method="forced"))
    _, stream = jax.jit(functools.partial(small.model(DENSE).apply, return_features=True))(
        {"params": teacher}, batch["image"]
    )
    got = forced({"params": student}, batch["image"], stream)
    other = trees.replace(student, {"blocks_0/mlp/fc1/u": 0 * trees.get(student, "blocks_0/mlp/fc1/u")})
    assert np.array_equal(forced({"params": other}, batch["image"], stream)[1], got[1])
    # Fed its own stream, the network is itself.
    _, own = free({"params": student}, batch["image"])
    for one, same in zip(forced({"params": student}, batch["image"], own), own, strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(got[1]) - np.asarray(own[1])).max() > 0.1


def train_steps(recipe, frozen):
    teacher, student, batch = scene()
    tx = train.optimizer(recipe, frozen)
    loss_fn = step.distillation(small.model(STUDENT), small.model(DENSE), Distillation())

    @jax.jit
    def update(params, state):
        gradient = jax.jit(jax.grad(lambda p: loss_fn(p, teacher, batch)[0]))(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.tree.map(jnp.asarray, student), jax.jit(tx.init)(student)
    for _ in range(3):
        params, state = update(params, state)
    return student, params


def test_a_frozen_base_stays_over_several_clipped_and_decayed_steps_while_all_else_moves():
    recipe = Recipe(steps=10, learning_rate=1e-2, weight_decay=0.5, grad_clip=1.0)
    objective = training.Objective(small.model(STUDENT), freeze_base=True)
    before, after = train_steps(recipe, functools.partial(training.kept, objective))
    for info in small.LAYERS:
        old, new = trees.get(before, info.path), trees.get(after, info.path)
        for name in old:
            assert np.array_equal(old[name], new[name]) == (name in ("u", "v")), (info.path, name)


def test_without_freezing_every_parameter_moves():
    before, after = train_steps(Recipe(steps=10, learning_rate=1e-2), None)
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 5), (5, 5), (3, 50)])
def test_a_warmup_longer_than_the_run_is_cut(steps, warmup):
    schedule = train.schedule(Recipe(steps=steps, learning_rate=1.0, warmup=warmup))
    assert all(0 < float(schedule(index)) <= 1 for index in range(steps))
