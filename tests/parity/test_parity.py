"""Logits against PyTorch's to 1e-4, and that 1e-4 is tight enough to see a wrong epsilon, GELU or bias.

`bash launch/parity.sh` runs these; where torch, timm and transformers are missing they are skipped.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

from lraqvit_jax import models, weights
from lraqvit_jax.base import trees
from lraqvit_jax.models import swin, vit
from tests.golden import recipe

pytorch = pytest.importorskip(
    "tests.parity.pytorch", reason="needs torch, timm and transformers, as bash launch/parity.sh installs them"
)
Case = pytorch.Case
# Their deprecation warnings are not ours to mend.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-4
MARGIN = 10
CASES = [
    Case("vit_tiny_patch16_224", 224),
    Case("vit_tiny_patch16_224", 160),
    Case("vit_base_patch16_224", 224),
    Case("vit_base_patch16_224", 256),
    Case("deit_tiny_patch16_224", 224),
    Case("deit_base_patch16_224", 224),
    Case("deit_tiny_distilled_patch16_224", 224),
    Case("deit_tiny_distilled_patch16_224", 160),
    Case("deit_base_distilled_patch16_224", 224),
    Case("deit3_base_patch16_224", 224),
    Case("swin_tiny_patch4_window7_224", 224),
    Case("swin_tiny_patch4_window7_224", 112),  # the last map is smaller than a window
    Case("swin_tiny_patch4_window7_224", 448),
    Case("swin_base_patch4_window7_224", 224),
    Case("swin_base_patch4_window7_224", 448),
    Case("swin_base_patch4_window12_384", 384),
    Case("vit tiny", 224),
    Case("vit tiny", 160),
    Case("vit tiny", 224, {"hidden_act": "gelu_new"}),
    Case("vit tiny", 224, {"qkv_bias": False}),
    Case("vit base", 224),
    Case("vit base", 256),
    Case("deit tiny", 224),
    Case("deit tiny", 160),
    Case("deit base", 224),
    Case("swin tiny", 224),
    Case("swin tiny", 256),  # no map is tiled by its windows
    Case("swin tiny", 240),  # nor is every side even where patches merge
    Case("swin tiny", 224, {"qkv_bias": False}),
    Case("swin base", 224),
    Case("swin base", 256),
    Case("swin base", 384, {"window_size": 12}),
]
SMALL_STREAM = [
    Case("vit_tiny_patch16_224", 64, stream=0.01),
    Case("deit_tiny_distilled_patch16_224", 64, stream=0.01),
    Case("swin_tiny_patch4_window7_224", 112, stream=0.01),
    Case("swin tiny", 224, stream=0.01),
    Case("vit tiny", 64, stream=0.01),  # epsilon 1e-12
    Case("vit tiny", 64, {"layer_norm_eps": 1e-6}, stream=0.01),
]
BIASES = ["patch_embed", "norm1", "attn/qkv", "attn/proj", "norm2", "mlp/fc1", "mlp/fc2", "norm", "head"]


def runner(found, suffix=""):
    """Logits as a function of parameters. A new function each time: jit takes an equal model for the same."""
    model = models.create(found.model + suffix, num_classes=found.num_classes, image_size=found.preprocess.size)
    apply = jax.jit(lambda params, images: model.apply({"params": params}, images))
    return lambda params, images: np.asarray(apply(params, images))


def largest(got, want):
    return float(np.abs(got - want).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_those_of_pytorch(case, tmp_path, record_property):
    reference = pytorch.build(case)
    images = recipe.images(2, case.size, seed=2)
    want = pytorch.logits(reference, images)
    found = weights.read(pytorch.save(reference, case, tmp_path))
    assert found.preprocess.size == case.size
    error = largest(runner(found)(found.params, images), want)
    record_property("parity", f"{error:.1e} of logits with std {want.std():.1f}")
    assert want.std() > 1
    assert error <= TOLERANCE


class Small(NamedTuple):
    found: weights.Pretrained
    images: np.ndarray
    logits: np.ndarray
    run: Callable


@pytest.fixture(scope="module", params=SMALL_STREAM, ids=str)
def small(request, tmp_path_factory):
    """A model whose LayerNorms see variances near 1e-4."""
    case = request.param
    reference = pytorch.build(case)
    images = recipe.images(2, case.size, seed=2)
    found = weights.read(pytorch.save(reference, case, tmp_path_factory.mktemp("small")))
    return Small(found, images, pytorch.logits(reference, images), runner(found))


def test_small_activations_agree_too(small):
    assert largest(small.run(small.found.params, small.images), small.logits) <= TOLERANCE


@pytest.mark.parametrize("factor", [0.1, 10])
def test_another_layer_norm_epsilon_is_seen(small, monkeypatch, factor):
    module = swin if small.found.model.startswith("swin") else vit
    norm = functools.partial(vit.layer_norm, epsilon=factor * module.NORM_EPS)
    monkeypatch.setattr(module, "layer_norm", lambda name=None, epsilon=None: norm(name))
    assert largest(runner(small.found)(small.found.params, small.images), small.logits) > MARGIN * TOLERANCE


def test_the_tanh_gelu_is_seen(small):
    run = runner(small.found, "_tanh")
    assert largest(run(small.found.params, small.images), small.logits) > MARGIN * TOLERANCE


@pytest.mark.parametrize("name", BIASES)
def test_a_missing_bias_is_seen(small, name):
    flat = trees.flatten(small.found.params)
    biases = {path: np.zeros_like(value) for path, value in flat.items() if path.endswith(f"{name}/bias")}
    assert biases
    assert largest(small.run(trees.nest(flat | biases), small.images), small.logits) > MARGIN * TOLERANCE
