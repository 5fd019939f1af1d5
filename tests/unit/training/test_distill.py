"""Losses and the step against NumPy."""

import jax
import numpy as np
import pytest
from scipy import special

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.options.training import Distillation, Recipe
from lraqvit_jax.training import loop as train
from lraqvit_jax.training import losses, step
from tests.unit import numpy_vit, small


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


def mixed(rng, **fields):
    """A batch of mixed images: labels of both, of one, of none."""
    other = np.array([1, -1, 7, 9, 0, -1])
    return batch(rng, **fields) | {"other_label": other, "share": rng.random(6).astype(np.float32)}


def mixed_cross_entropy(logits, rows, smoothing=0.0):
    """In float64: a weighted mean over every (image, label) that there is."""
    log_p, total, count = log_softmax(logits), 0.0, 0.0
    for row, share in enumerate(rows["share"].astype(np.float64)):
        for label, weight in ((rows["label"][row], share), (rows["other_label"][row], 1 - share)):
            if label >= 0:
                target = (1 - smoothing) * np.eye(log_p.shape[-1])[label] + smoothing / log_p.shape[-1]
                total, count = total - weight * target @ log_p[row], count + weight
    return total / count if count else 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_images_is_the_mix_of_their_cross_entropies(rng, smoothing):
    logits, rows = rng.standard_normal((6, 10)).astype(np.float32), mixed(rng)
    got = losses.mixed_cross_entropy(logits, rows["label"], rows["other_label"], rows["share"], smoothing)
    np.testing.assert_allclose(got, mixed_cross_entropy(logits, rows, smoothing), rtol=1e-5)
    # With every label there, the plain mean of `share * CE(label) + (1 - share) * CE(other_label)`.
    label, other = rng.integers(0, 10, (2, 6))
    each = [
        share * losses.cross_entropy(row[None], one[None], smoothing)
        + (1 - share) * losses.cross_entropy(row[None], two[None], smoothing)
        for row, one, two, share in zip(logits, label, other, rows["share"], strict=True)
    ]
    got = losses.mixed_cross_entropy(logits, label, other, rows["share"], smoothing)
    np.testing.assert_allclose(got, np.mean(each), rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_images_without_labels_give_0_and_no_gradient(rng, share):
    none, logits = np.full(6, -1), rng.standard_normal((6, 10)).astype(np.float32)
    value, gradient = jax.value_and_grad(losses.mixed_cross_entropy)(
        logits, none, none, np.full(6, share, np.float32), 0.1
    )
    assert value == 0
    assert not np.any(gradient)


def test_mixing_an_image_with_itself_is_the_plain_loss(rng):
    logits, labels = rng.standard_normal((6, 10)).astype(np.float32), np.array([3, 0, -1, 9, 4, -1])
    got = losses.mixed_cross_entropy(logits, labels, labels, rng.random(6).astype(np.float32))
    np.testing.assert_allclose(got, losses.cross_entropy(logits, labels), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_of_logits_is_scipys_relative_entropy(rng, temperature):
    teacher, student = (3 * rng.standard_normal((5, 10)).astype(np.float32) for _ in range(2))
    p, q = (special.softmax(logits.astype(np.float64) / temperature, -1) for logits in (teacher, student))
    want = temperature**2 * special.rel_entr(p, q).sum(-1).mean()
    np.testing.assert_allclose(losses.logits_kl(teacher, student, temperature), want, rtol=1e-5)
    assert losses.logits_kl(teacher, teacher, temperature) == 0
    # A constant on top of an image's logits changes no probability.
    shift = rng.standard_normal((5, 1)).astype(np.float32)
    np.testing.assert_allclose(losses.logits_kl(teacher, teacher + shift, temperature), 0, atol=1e-5)


def test_the_divergence_of_logits_is_finite_for_a_sure_teacher():
    sure = np.array([[0, 1e4, 0]], np.float32)
    assert np.isfinite(losses.logits_kl(sure, -sure))
    assert losses.logits_kl(sure, sure) == 0


def test_the_gradient_of_the_divergence_is_the_difference_of_probabilities(rng):
    """T^2 keeps it of the same size: d/ds = T (softmax(s / T) - softmax(t / T)) per image."""
    teacher, student = (rng.standard_normal((5, 10)).astype(np.float32) for _ in range(2))
    for temperature in (1.0, 3.0):
        p, q = (special.softmax(logits.astype(np.float64) / temperature, -1) for logits in (teacher, student))
        got = jax.grad(losses.logits_kl, 1)(teacher, student, temperature)
        np.testing.assert_allclose(got, temperature * (q - p) / 5, atol=1e-6)


def test_normalized_block_mse_is_relative_to_the_teacher(rng):
    teacher, student = (
        [scale * rng.standard_normal((2, 5, 8)).astype(np.float32) for scale in (1, 10, 0.01)] for _ in range(2)
    )
    wide = [(t.astype(np.float64), s.astype(np.float64)) for t, s in zip(teacher, student, strict=True)]
    want = [np.mean((t - s) ** 2) / np.mean(t**2) for t, s in wide]
    np.testing.assert_allclose(losses.block_mse(teacher, student, normalized=True), want, rtol=1e-5)
    # Of another unit, the same error.
    halved = losses.block_mse([t / 2 for t in teacher], [s / 2 for s in student], normalized=True)
    np.testing.assert_allclose(halved, want, rtol=1e-5)
    np.testing.assert_allclose(losses.block_mse(teacher, [0 * s for s in student], normalized=True), 1, rtol=1e-6)


def test_block_mse_is_eq_9(rng):
    teacher, student = ([rng.standard_normal((2, 5, 8)).astype(np.float32) for _ in range(3)] for _ in range(2))
    want = [np.mean((t.astype(np.float64) - s) ** 2) for t, s in zip(teacher, student, strict=True)]
    np.testing.assert_allclose(losses.block_mse(teacher, student), want, rtol=1e-5)


def test_the_loss_is_eq_10(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng)
    loss, metrics = jax.jit(step.distillation(student, teacher, Distillation(alpha=0.3, beta=2.0)))(
        params, frozen, rows
    )
    logits, got = small.apply(student, params, rows["image"], return_features=True)
    _, targets = small.apply(teacher, frozen, rows["image"], return_features=True)
    kd = [np.mean((np.asarray(t, np.float64) - np.asarray(s)) ** 2) for t, s in zip(targets, got, strict=True)]
    known = rows["label"] >= 0
    ce = -np.mean(log_softmax(logits)[known, rows["label"][known]])
    np.testing.assert_allclose(loss, 0.3 * ce + 2 * np.mean(kd), rtol=1e-5)
    np.testing.assert_allclose([metrics["kd_0"], metrics["kd_1"], metrics["kd"]], [*kd, np.mean(kd)], rtol=1e-5)


def test_every_term_of_the_loss(rng):
    """Mixed images, relative block errors, and the teacher's logits at a temperature, against NumPy."""
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = mixed(rng)
    options = {"alpha": 0.3, "beta": 2.0, "gamma": 0.7, "temperature": 2.0, "normalized": True}
    loss, metrics = jax.jit(step.distillation(student, teacher, Distillation(**options)))(params, frozen, rows)
    logits, got = small.apply(student, params, rows["image"], return_features=True)
    wanted, targets = small.apply(teacher, frozen, rows["image"], return_features=True)
    pairs = [(np.asarray(t, np.float64), np.asarray(s, np.float64)) for t, s in zip(targets, got, strict=True)]
    kd = np.mean([np.mean((t - s) ** 2) / np.mean(t**2) for t, s in pairs])
    p, q = (special.softmax(np.asarray(one, np.float64) / 2, -1) for one in (wanted, logits))
    kl = 4 * special.rel_entr(p, q).sum(-1).mean()
    ce = mixed_cross_entropy(logits, rows)
    np.testing.assert_allclose([metrics["ce"], metrics["kd"], metrics["kl"]], [ce, kd, kl], rtol=1e-4)
    np.testing.assert_allclose(loss, 0.3 * ce + 2 * kd + 0.7 * kl, rtol=1e-4)
    accuracy = np.mean(np.argmax(logits, -1) == rows["label"])
    assert metrics["accuracy"] == np.float32(accuracy)


def test_the_supervised_loss_takes_mixed_images(rng):
    _, _, model, params = student_and_teacher(rng)
    rows = mixed(rng)
    loss, _ = jax.jit(step.supervised(model, 0.1))(params, None, rows)
    logits = small.apply(model, params, rows["image"])
    np.testing.assert_allclose(loss, mixed_cross_entropy(logits, rows, 0.1), rtol=1e-5)


def test_gamma_alone_runs_the_teacher_for_its_logits(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng, [-1] * 6)  # nothing is labelled
    loss_fn = step.distillation(student, teacher, Distillation(beta=0.0, gamma=1.5))
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, frozen, rows)
    assert set(metrics) == {"ce", "accuracy", "kl"}
    assert metrics["ce"] == 0
    wanted, logits = (
        np.asarray(small.apply(model, one, rows["image"]), np.float64)
        for model, one in ((teacher, frozen), (student, params))
    )
    p, q = special.softmax(wanted, -1), special.softmax(logits, -1)
    np.testing.assert_allclose(loss, 1.5 * special.rel_entr(p, q).sum(-1).mean(), rtol=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert np.any(gradient["head"]["kernel"])


def test_pelas_penalty_is_the_largest_deviation_of_each_pair_squared(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng)
    worst = []
    for path in (info.path for info in small.LAYERS if info.compressible):
        pair = {name: np.asarray(value, np.float64) for name, value in trees.get(params, path).items()}
        product = (pair["u"] + pair["du"]) @ (pair["v"] + pair["dv"])
        worst.append(np.abs(product - trees.get(frozen, path)["kernel"]).max())
    plain, bound = (
        jax.jit(step.distillation(student, teacher, Distillation(bound=weight)))(params, frozen, rows)[0]
        for weight in (0.0, 0.25)
    )
    np.testing.assert_allclose(bound - plain, 0.25 * np.mean(np.square(worst)), rtol=1e-3)


def test_the_last_block_alone_can_be_compared(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng)
    every = jax.jit(step.distillation(student, teacher, Distillation()))(params, frozen, rows)[1]
    last = jax.jit(step.distillation(student, teacher, Distillation(last_block=True)))(params, frozen, rows)[1]
    np.testing.assert_allclose(last["kd"], every["kd_1"], rtol=1e-6)
    assert "kd_1" not in last


def attention(model, params, images):
    """The attention of every block, (blocks, batch, heads, tokens, tokens), from the blocks' inputs in float64."""
    _, features = small.apply(model, params, images, return_features=True)
    maps, inputs = [], [small.apply(model, params, images, method="embed"), *features[:-1]]
    for index, entering in enumerate(inputs):
        norm, qkv = params[f"blocks_{index}"]["norm1"], params[f"blocks_{index}"]["attn"]["qkv"]
        x = numpy_vit.layer_norm(np.asarray(entering, np.float64), norm["scale"], norm["bias"], 1e-6)
        kernel = qkv["kernel"] if "kernel" in qkv else (qkv["u"] + qkv["du"]) @ (qkv["v"] + qkv["dv"])
        out = (x @ kernel + qkv["bias"]).reshape(*x.shape[:2], 3, 2, -1)
        query, key = (np.moveaxis(out[:, :, part], 2, 1) for part in (0, 1))
        maps.append(special.softmax(query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1]), -1))
    return np.stack(maps)


def test_attention_maps_are_distilled_on_request(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng, [-1] * 6)
    loss, metrics = jax.jit(step.distillation(student, teacher, Distillation(beta=0.0, delta=0.5)))(
        params, frozen, rows
    )
    assert set(metrics) == {"ce", "accuracy", "attention_kl"}
    p, q = attention(teacher, frozen, rows["image"]), attention(student, params, rows["image"])
    np.testing.assert_allclose(loss, 0.5 * special.rel_entr(p, q).sum(-1).mean(), rtol=1e-4)
    gradient = jax.grad(
        lambda params: step.distillation(student, teacher, Distillation(beta=0.0, delta=1.0))(params, frozen, rows)[0]
    )
    found = jax.jit(gradient)(params)["blocks_1"]["attn"]
    assert np.any(found["qkv"]["du"])
    assert not np.any(found["proj"]["du"])  # nothing attends after the last block


@pytest.mark.slow
def test_a_swins_attention_maps_are_those_of_its_windows_and_no_mask_counts(rng):
    model = models.create("swin_pico", num_classes=10, image_size=8)
    images = small.images(rng, 2)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    other = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)
    loss = step.distillation(model, model, Distillation(alpha=0.0, beta=0.0, delta=1.0))
    rows = {"image": images, "label": np.zeros(2, np.int32)}
    assert loss(params, params, rows)[0] == 0
    value = loss(other, params, rows)[0]
    assert np.isfinite(value)
    assert value > 1e-4


def test_teacher_forcing_changes_only_later_blocks_and_nothing_for_a_perfect_student(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    rows = batch(rng)
    own, forced = (
        jax.jit(step.distillation(student, teacher, Distillation(teacher_forced=flag)))(params, frozen, rows)[1]
        for flag in (False, True)
    )
    np.testing.assert_allclose(own["kd_0"], forced["kd_0"], rtol=1e-6)
    assert abs(own["kd_1"] - forced["kd_1"]) > 1e-3 * own["kd_1"]
    perfect = jax.jit(step.distillation(teacher, teacher, Distillation(teacher_forced=True)))(frozen, frozen, rows)[1]
    assert perfect["kd"] < 1e-10


def test_no_gradient_reaches_the_teacher(rng):
    student, params, teacher, frozen = student_and_teacher(rng)
    loss = step.distillation(student, teacher, Distillation(gamma=1.0, normalized=True))
    gradient = jax.jit(jax.grad(lambda frozen: loss(params, frozen, batch(rng))[0]))(frozen)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_schedule_warms_up_and_ends_at_zero():
    recipe = Recipe(1e-3, warmup=10, steps=100)
    rates = np.array([train.schedule(recipe)(step) for step in range(101)])
    assert 0 < rates[0] < rates[5] < rates[10]
    np.testing.assert_allclose(rates[10], 1e-3)
    cosine = 0.5e-3 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(rates[10:], cosine, atol=1e-9)
    plain = train.schedule(Recipe(1e-3, steps=100))
    np.testing.assert_allclose([plain(0), plain(50)], [1e-3, 0.5e-3])


def test_weight_decay_is_for_matrices(rng):
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32), "pos_embed": np.ones((1, 3, 2))}
    tx = train.optimizer(Recipe(0.1, weight_decay=0.1, steps=10))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.01)
    assert not np.any(updates["bias"])
    assert not np.any(updates["pos_embed"])
