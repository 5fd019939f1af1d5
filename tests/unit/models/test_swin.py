"""Swin against a float64 transcription that goes window by window."""

import jax
import numpy as np
import pytest

from lraqvit_jax import models
from lraqvit_jax.models import swin
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.sources import timm
from tests.golden import recipe
from tests.unit import numpy_swin, numpy_vit

CLASSES = 5
CARD = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def draw(variant, size, stream=1.0):
    """Random tensors of a variant in timm's names."""
    base, changes = models.split(variant)
    fields = {name: value for name, value in (swin.VARIANTS[base] | changes).items() if name != "gelu"}
    patch, window = fields.pop("patch_size"), fields.pop("window_size")
    shapes = numpy_swin.shapes(**fields, patch=patch, window=window, side=size // patch, classes=CLASSES)
    return recipe.weights(shapes, seed=size, stream=stream)


def load(values, size, suffix=""):
    found = timm.from_tensors(values, Hints("swin", size), "a test", "", CARD)
    model = models.create(found.model + suffix, num_classes=CLASSES, image_size=size)
    return found, model


def oracle(tensors, images, variant="swin_pico", **options):
    return numpy_swin.forward(tensors, images, swin.VARIANTS[models.split(variant)[0]]["window_size"], **options)


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("swin_pico", 16),  # 16 x 16, then 8 x 8, in windows of 4
        ("swin_pico", 13),  # 13 padded to 16; merged into 7, padded to 8
        ("swin_pico", 3),  # maps of 3 and 2, smaller than a window
        ("swin_pico_mlp24", 16),
        ("swin_nano", 22),  # patches of 2: 11 padded to 12, 6 padded to 8, 3 smaller than a window
    ],
)
def test_logits_and_every_block_are_those_of_the_transcription(variant, size):
    values, images = draw(variant, size), recipe.images(2, size, seed=0)
    found, model = load(values, size)
    assert found.model.startswith(variant)

    @jax.jit
    def run(params, images):
        logits, features = model.apply({"params": params}, images, return_features=True)
        return logits, features, model.apply({"params": params}, images, features, method="forced")

    logits, features, forced = run(found.params, images)
    want, blocks = oracle(values, images, variant)
    np.testing.assert_allclose(logits, want, atol=1e-4, rtol=0)
    assert len(features) == len(blocks) == sum(swin.VARIANTS[models.split(variant)[0]]["depths"])
    for got, again, block in zip(features, forced, blocks, strict=True):
        np.testing.assert_allclose(got, block, atol=1e-4, rtol=0)
        np.testing.assert_allclose(again, got, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def small_stream():
    """LayerNorms see variances near 1e-4, so that their epsilon shows: tensors, images, our logits."""
    values, images = draw("swin_pico", 13, stream=0.01), recipe.images(2, 13, seed=0)
    found, model = load(values, 13)
    logits = jax.jit(model.apply)({"params": found.params}, images)
    np.testing.assert_allclose(logits, oracle(values, images)[0], atol=1e-4, rtol=0)
    return values, images, logits


def reversed_tables(values):
    return {name: value[::-1] if "bias_table" in name else value for name, value in values.items()}


def without(end):
    return lambda values: {name: value * (not name.endswith(end)) for name, value in values.items()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 1e-6},
        {"eps": 1e-12},
        {"gelu": numpy_vit.tanh_gelu},
        {"values": reversed_tables},
        {"values": without("bias_table")},
        {"values": without("qkv.bias")},
        {"values": without("proj.bias")},
        {"values": without("fc1.bias")},
        {"values": without("norm1.bias")},
    ],
    ids=["eps 1e-6", "eps 1e-12", "gelu", "reversed", "no table", "no qkv", "no proj", "no fc1", "no norm1"],
)
def test_a_wrong_epsilon_gelu_or_bias_is_seen(small_stream, wrong):
    """The tolerance above is tight enough to tell, by a margin."""
    values, images, logits = small_stream
    options = dict(wrong)
    change = options.pop("values", lambda values: values)
    want, _ = oracle(change(values), images, **options)
    assert np.abs(logits - want).max() > 3e-4


def test_a_missing_mask_is_seen(small_stream, monkeypatch):
    values, images, logits = small_stream
    right = swin.attention_mask
    monkeypatch.setattr(swin, "attention_mask", lambda *sizes: np.zeros_like(right(*sizes)))
    found, model = load(values, 13)
    wrong = jax.jit(lambda params: model.apply({"params": params}, images))(found.params)
    assert np.abs(wrong - logits).max() > 1e-2


def test_the_tanh_gelu_and_the_window_are_suffixes():
    values, images = draw("swin_pico", 8), recipe.images(1, 8, seed=0)
    found, model = load(values, 8, "_tanh")
    want, _ = oracle(values, images, gelu=numpy_vit.tanh_gelu)
    np.testing.assert_allclose(jax.jit(model.apply)({"params": found.params}, images), want, atol=1e-4, rtol=0)
    assert models.split("swin_base_window12_tanh") == ("swin_base", {"gelu": "tanh", "window_size": 12})
