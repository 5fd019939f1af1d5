"""The evaluator against counts and divergences in float64."""

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import sources
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.tasks import classification as evaluate
from tests.unit import small


@pytest.mark.parametrize("batch_size", [64, 50])  # 360 images: neither divides them.
def test_counts_and_divergences_of_every_image(rng, batch_size):
    source, record = sources.load("embedded:digits", "eval"), Preprocess(8, crop_pct=1.0)
    model, one, two = small.model(), *(small.params(small.plan(), rng) for _ in range(2))
    options = {"batch_size": batch_size, "mesh": small.MESH}
    other = evaluate.logits(model, two, source, record, **options)
    found = evaluate.accuracy(model, one, source, record, other=other, **options)
    images = np.stack([record(source[index]["image"]) for index in range(len(source))])
    labels = np.array([source[index]["label"] for index in range(len(source))])
    this, that = (np.asarray(jax.jit(model.apply)({"params": p}, images), np.float64) for p in (one, two))
    assert found.images == len(labels)
    assert found.top1 == pytest.approx(100 * np.mean(this.argmax(-1) == labels))
    ranks = np.sum(this > this[np.arange(len(this)), labels][:, None], -1)
    assert found.top5 == pytest.approx(100 * np.mean(ranks < 5))
    assert found.agreement == pytest.approx(100 * np.mean(this.argmax(-1) == that.argmax(-1)))
    log_this, log_that = (scipy.special.log_softmax(logits, -1) for logits in (this, that))
    assert found.kl == pytest.approx(np.mean(np.sum(np.exp(log_that) * (log_that - log_this), -1)), rel=1e-4)
    answers = found.answers
    assert np.array_equal(answers.image, np.arange(len(labels)))
    assert np.array_equal(answers.label, labels)
    assert np.array_equal(answers.answer, this.argmax(-1))
    np.testing.assert_allclose(answers.probability, scipy.special.softmax(this, -1).max(-1), rtol=1e-4)
    same = evaluate.accuracy(model, two, source, record, other=other, **options)
    assert (same.agreement, same.kl) == (100, pytest.approx(0, abs=1e-6))
    alone = evaluate.accuracy(model, one, source, record, **options)
    assert (alone.top1, alone.top5, alone.kl) == (found.top1, found.top5, 0)


class Labelled:
    """Grey images whose labels come with each of them and are not known before, as those of a stream."""

    class_names = ()

    def __init__(self, labels):
        self._labels = labels

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        return {"image": Image.new("L", (8, 8), index), "label": self._labels[index]}


def test_logits_of_labelled_images(rng):
    """In their order, without those of images that have no label; the last batch is ragged."""
    labels = rng.integers(-1, 10, 53).tolist()
    source, record, model = Labelled(labels), Preprocess(8, crop_pct=1.0), small.model()
    params = small.params(small.plan(), rng)
    found = evaluate.labelled(model, params, source, record, batch_size=16, mesh=small.MESH)
    assert found.image.tolist() == [index for index, label in enumerate(labels) if label >= 0]
    assert found.label.tolist() == [label for label in labels if label >= 0]
    images = np.stack([record(source[index]["image"]) for index in found.image.tolist()])
    want = np.asarray(jax.jit(model.apply)({"params": params}, images))
    np.testing.assert_allclose(found.logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("wrong", [10, 70_000, -2])
def test_a_label_that_is_no_class_of_the_model_is_named(rng, known, wrong):
    source = Labelled([0, -1, 9] * 13)
    options = {"batch_size": 16, "mesh": small.MESH}
    params, record = small.params(small.plan(), rng), Preprocess(8, crop_pct=1.0)
    assert evaluate.accuracy(small.model(), params, source, record, **options).images == 26
    source._labels[37] = wrong
    if known:
        source.labels = source._labels
    with pytest.raises(UserError, match=f"image 37 has the label {wrong}, and the model has 10 classes, 0 to 9;"):
        evaluate.accuracy(small.model(), params, source, record, **options)
