"""Losses and the step against NumPy."""

import jax
import numpy as np

from lraqvit_jax import train
from lraqvit_jax.distill import losses, step
from tests.unit import small


def student_and_teacher(rng):
    plan = small.plan("reparam")
    return small.model(plan), small.params(plan, rng), small.model(), small.params(small.plan(), rng)


def batch(rng, labels=(3, 0, -1, 9, 4, -1)):
    return {"image": small.images(rng, len(labels)), "label": np.array(labels)}


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))


def test_cross_entropy_leaves_out_unlabelled_images(rng):
    logits = rng.standard_normal((6, 10)).astype(np.float32)
    labels = np.array([3, 0, -1, 9, 4, -1])
    known = labels >= 0
    smooth = 0.9 * np.eye(10)[labels[known]] + 0.01
    want = -np.mean(np.sum(smooth * log_softmax(logits[known]), -1))
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, 0.1), want, rtol=1e-5)
    assert losses.cross_entropy(logits, np.full(6, -1)) == 0


def test_block_mse_is_eq_9(rng):
    teacher, student = ([rng.standard_normal((2, 5, 8)).astype(np.float32) for _ in range(3)] for _ in range(2))
    want = [np.mean((t.astype(np.float64) - s) ** 2) for t, s in zip(teacher, student, strict=True)]
    np.testing.assert_allclose(losses.block_mse(teacher, student), want, rtol=1e-5)


def test_the_loss_is_eq_10(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng)
    loss, metrics = step.distillation(student, teacher, alpha=0.3, beta=2.0)(params, frozen, rows)
    logits, got = student.apply({"params": params}, rows["image"], return_features=True)
    _, targets = teacher.apply({"params": frozen}, rows["image"], return_features=True)
    kd = [np.mean((np.asarray(t, np.float64) - np.asarray(s)) ** 2) for t, s in zip(targets, got, strict=True)]
    known = rows["label"] >= 0
    ce = -np.mean(log_softmax(logits)[known, rows["label"][known]])
    np.testing.assert_allclose(loss, 0.3 * ce + 2 * np.mean(kd), rtol=1e-5)
    np.testing.assert_allclose([metrics["kd_0"], metrics["kd_1"], metrics["kd"]], [*kd, np.mean(kd)], rtol=1e-5)


def test_teacher_forcing_changes_only_later_blocks_and_nothing_for_a_perfect_student(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng)
    own, forced = (
        step.distillation(student, teacher, teacher_forced=flag)(params, frozen, rows)[1] for flag in (False, True)
    )
    np.testing.assert_allclose(own["kd_0"], forced["kd_0"], rtol=1e-6)
    assert abs(own["kd_1"] - forced["kd_1"]) > 1e-3 * own["kd_1"]
    perfect = step.distillation(teacher, teacher, teacher_forced=True)(frozen, frozen, rows)[1]
    assert perfect["kd"] < 1e-10


def test_no_gradient_reaches_the_teacher(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    loss = step.distillation(student, teacher)
    gradient = jax.grad(lambda frozen: loss(params, frozen, batch(rng))[0])(frozen)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_schedule_warms_up_and_ends_at_zero():
    recipe = train.Recipe(100, 1e-3, warmup=10)
    rates = np.array([train.schedule(recipe)(step) for step in range(101)])
    assert 0 < rates[0] < rates[5] < rates[10]
    np.testing.assert_allclose(rates[10], 1e-3)
    cosine = 0.5e-3 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(rates[10:], cosine, atol=1e-9)
    plain = train.schedule(train.Recipe(100, 1e-3))
    np.testing.assert_allclose([plain(0), plain(50)], [1e-3, 0.5e-3])


def test_weight_decay_is_for_matrices(rng):
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32), "pos_embed": np.ones((1, 3, 2))}
    tx = train.optimizer(train.Recipe(10, 0.1, weight_decay=0.1))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.01)
    assert not np.any(updates["bias"])
    assert not np.any(updates["pos_embed"])
