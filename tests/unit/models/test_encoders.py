"""CLIP, DINOv2, SigLIP and what they are made of, against a transcription in float64; their sizes against timm's."""

import jax
import numpy as np
import pytest

from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import sharding
from lraqvit_jax.plan import blocks, check
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.plan.records import LayerPlan, dense
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.sources import timm
from tests.unit import numpy_vit

PICO = {"dim": 32, "depth": 2, "patch": 4, "side": 3, "classes": 5}
CASES = {
    "vit_pico_reg3": ({"registers": 3}, {}),
    "vit_pico_reg2": ({"registers": 2, "embed_class": False}, {"embed_class": False}),
    "vit_pico_normavg_class0": ({"class_token": False}, {"pool": "avg"}),
    "vit_pico_map_class0": ({"class_token": False, "pool": "map"}, {}),
    "vit_pico_map_reg1": ({"registers": 1, "pool": "map"}, {}),
    "vit_pico_concat_reg2": ({"registers": 2, "pool": "concat"}, {"pool": "concat"}),
    "vit_pico_quick_eps1e-05_prenorm1": ({"pre_norm": True}, {"gelu": "quick", "norm_eps": 1e-5}),
    "vit_pico_qknorm1": ({"qk_norm": 16}, {}),
    "vit_pico_mlp37_swiglu": ({"swiglu": True, "units": 37}, {"gelu": "swiglu"}),
    "vit_pico_proj12": ({"projection": 12}, {}),
    "dinov2_small_dim32_depth2_patch4_heads2_mlp24_swiglu_reg2": (
        {"layer_scale": True, "swiglu": True, "units": 24, "registers": 2, "classes": 0},
        {"name": "vit_giant_patch14_reg4_dinov2", "gelu": "swiglu", "headless": True},
    ),
    "siglip_base_dim32_depth2_patch4_heads2": (
        {"class_token": False, "pool": "map", "classes": 0},
        {"name": "vit_base_patch16_siglip_224", "gelu": "tanh", "headless": True},
    ),
}
"""By our name, what `numpy_vit.random_tensors` makes otherwise, and what a card says."""


def read(values, **hints):
    return timm.from_tensors(values, Hints(**{"name": "vit", "heads": 2} | hints), "a test", "", timm.HALF)


@pytest.mark.parametrize("name", CASES)
def test_every_option_is_that_of_the_transcription(rng, name):
    options, hints = CASES[name]
    values = numpy_vit.random_tensors(rng, **PICO | options)
    images = rng.standard_normal((2, 12, 12, 3)).astype(np.float32)
    found = read(values, **hints)
    sizes = {"num_classes": found.num_classes, "image_size": 12}
    model = models.create(name, **sizes)
    assert models.create(found.model, **sizes) == models.create(models.name_of(model), **sizes) == model
    got = np.asarray(jax.jit(model.apply)({"params": found.params}, images))
    gelu, pool = numpy_vit.GELUS[hints.get("gelu", "exact")], model.pool
    want = numpy_vit.logits(values, images, 2, hints.get("norm_eps", 1e-6), gelu, pool)
    assert got.shape == want.shape == (2, found.num_classes or model.width)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_rows_and_columns_that_no_patch_covers_are_not_seen(rng):
    values = numpy_vit.random_tensors(rng, **PICO)
    found = read(values, image_size=14)
    assert (found.model, found.preprocess.size) == ("vit_pico_spare2", 14)
    images = rng.standard_normal((2, 14, 14, 3)).astype(np.float32)
    got = models.create(found.model, num_classes=5, image_size=14).apply({"params": found.params}, images)
    np.testing.assert_allclose(got, numpy_vit.logits(values, images[:, :12, :12], 2), atol=1e-5)
    with pytest.raises(UserError, match="do not tile an image of 14"):
        models.create("vit_pico", num_classes=5, image_size=14)


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("dinov2_small", 518, 22_056_192),
        ("dinov2_giant", 518, 1_136_479_232),
        ("dinov2_small_reg4", 518, 22_057_344 + 384),  # timm's class token has no position
        ("clip_base", 224, 85_799_424),
        ("siglip_base", 224, 92_884_224),
        ("siglip_so400m_spare6", 384, 428_225_600),
    ],
)
def test_models_without_a_head_have_as_many_parameters_as_timms(name, size, count):
    model = models.create(name, num_classes=0, image_size=size)
    params = sharding.abstract_params(model, size, sharding.one_device())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    layers = models.spec(name, num_classes=0, image_size=size).layers
    inside = {info.path for info in layers}
    others = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if "/".join(part.key for part in path[:-1]) not in inside
    )
    assert total_cost(dense(layers), layers).params + others == count


def test_what_goes_together_only_is_said_in_a_name():
    for name in ("vit_pico_class0", "vit_pico_class0_concat", "deit_tiny_distilled_class0_map", "swin_pico_swiglu"):
        with pytest.raises(UserError, match="correct it"):
            models.create(name, num_classes=3, image_size=8)


def plan_of(name, **changed):
    layers = models.spec(name, num_classes=3, image_size=8).layers
    return {**dense(layers), **changed}, layers


def test_queries_and_keys_that_a_norm_sees_stay_in_one_layer():
    plan, layers = plan_of("vit_pico_qknorm1")
    assert [block.attention for block in blocks.blocks(layers)] == [(), ()]
    by_head = {f"blocks_0/attn/{name}": LayerPlan() for name in ("query", "key", "value")}
    del plan["blocks_0/attn/qkv"]
    with pytest.raises(UserError, match=r"a LayerNorm sees .* plan 'blocks_0/attn/qkv'"):
        check.check(plan | by_head, layers)


def test_gates_go_with_their_units():
    """A width counts units: half of fc1's outputs; and those cannot be ordered anew."""
    plan, layers = plan_of("vit_pico_swiglu_mlp24")
    narrow = {"blocks_0/mlp/fc1": LayerPlan(width=23), "blocks_0/mlp/fc2": LayerPlan(width=23)}
    check.check(plan | narrow, layers)
    for width, words in ((24, "1 to 23"), (47, "1 to 23")):
        wide = {path: LayerPlan(width=width) for path in narrow}
        with pytest.raises(UserError, match=words):
            check.check(plan | wide, layers)
    with pytest.raises(UserError, match="without gates"):
        check.check(plan | {"blocks_0/mlp/fc1": LayerPlan("pivoted", 8, basis="leading")}, layers)
