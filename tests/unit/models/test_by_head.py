"""Blocks by head and with fewer hidden units, in every model: the same function at full size, the cost that is said."""

import dataclasses

import jax
import numpy as np
import pytest

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.calibration import moments as moments_lib
from lraqvit_jax.lowrank import block, gauge
from lraqvit_jax.plan import blocks, check, cost, records
from lraqvit_jax.plan.blocks import Sizes
from tests.unit import small

VARIANTS = {
    "vit_pico": ("vit_pico", 8),
    "distilled": ("deit_tiny_distilled_depth2_patch8", 16),
    "deit3": ("deit3_tiny_depth2_patch8", 16),
    "gated": ("dinov2_giant_dim32_depth2_heads2_mlp24_patch4_reg2", 8),
    "swin": ("swin_pico", 8),
    "swin_padded": ("swin_pico", 13),
}


def subject(name, rng):
    """A model, its random parameters, its layers, and made-up moments of them."""
    variant, size = VARIANTS[name]
    model = models.create(variant, num_classes=5, image_size=size)
    spec = models.spec(variant, num_classes=5, image_size=size)
    images = rng.standard_normal((3, size, size, 3)).astype(np.float32)
    shapes = small.unboxed(model, images)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    layers = [info for info in spec.layers if info.compressible]
    seen = {}
    for info in layers:
        x = rng.standard_normal((3 * info.features_in, info.features_in))
        seen[info.path] = moments_lib.of(x, rng.standard_normal((len(x), info.features_out)))
    return variant, model, params, spec, seen, images


def shrunk(spec, params, seen, size_of, deployed=True):
    """Parameters and plan with the sizes that `size_of` gives for each block."""
    parts = blocks.blocks(info for info in spec.layers if info.compressible)
    chosen = {one.path: size_of(one) for one in parts}
    plan = blocks.plan_of(spec.layers, chosen)
    check.check(plan, spec.layers)
    for path, solved in block.solve(parts, params, seen).items():
        layers = solved.layers(chosen[path], "weighted_kfac")
        changed = {f"{path}/{name}": layer for name, layer in layers.items()}
        params = trees.without(trees.replace(params, changed), [f"{path}/attn/qkv"])
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    if not deployed:
        return params, records.low_rank(plan)
    params, largest = gauge.fix(params, plan, records.resolved(spec.layers, plan))
    assert largest <= 1.5
    return params, plan


def smaller(one):
    """Sizes that leave something of everything away."""
    whole = blocks.full(one)
    rank = min(one.mlp[0].features_in, whole.width) // 2
    return Sizes(whole.score - 3, whole.value - 2, whole.width - 7, rank, rank - 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_full_sizes_are_the_dense_function(name, rng):
    variant, model, params, spec, seen, images = subject(name, rng)
    made, plan = shrunk(spec, params, seen, blocks.full)
    fixed = models.create(variant, num_classes=5, image_size=images.shape[1], plan=plan)
    expected = np.asarray(small.apply(model, params, images))
    np.testing.assert_allclose(small.apply(fixed, made, images), expected, atol=2e-5 * np.abs(expected).max())
    assert sum(leaf.size for leaf in jax.tree.leaves(made) if leaf.dtype == np.float32) < sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )


@pytest.mark.parametrize("name", ["vit_pico", "deit3", "swin_padded"])
def test_deployed_training_and_padded_forms_compute_the_same(name, rng):
    variant, model, params, spec, seen, images = subject(name, rng)
    size = images.shape[1]
    logits = []
    for deployed in (True, False):
        made, plan = shrunk(spec, params, seen, smaller, deployed)
        logits.append(small.apply(models.create(variant, num_classes=5, image_size=size, plan=plan), made, images))
    parts = blocks.blocks(info for info in spec.layers if info.compressible)
    padded = params
    for path, solved in block.solve(parts, params, seen).items():
        layers = solved.layers(smaller(solved.block), "weighted_kfac")
        padded = trees.replace(padded, {f"{path}/{key}": value for key, value in solved.padded(layers).items()})
    expected = np.asarray(small.apply(model, padded, images))
    for got in logits:
        np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max())
    assert np.abs(np.asarray(small.apply(model, params, images)) - expected).max() > 1e-3


@pytest.mark.parametrize("name", ["vit_pico", "swin"])
def test_a_plan_costs_what_is_stored_and_what_xla_multiplies(name, rng):
    variant, _, params, spec, seen, images = subject(name, rng)
    counted = []
    for size_of in (blocks.full, smaller):
        made, plan = shrunk(spec, params, seen, size_of)
        layers = records.resolved(spec.layers, plan)
        total = cost.total_cost(plan, spec.layers)
        assert cost.total_cost(plan, layers) == total
        stored = [leaf for info in layers for leaf in jax.tree.leaves(trees.get(made, info.path))]
        assert total.params == sum(leaf.size for leaf in stored if leaf.dtype == np.float32)
        assert total.bytes == sum(leaf.nbytes for leaf in stored)
        model = models.create(variant, num_classes=5, image_size=images.shape[1], plan=plan)
        compiled = (
            jax.jit(lambda params, x, model=model: model.apply({"params": params}, x)).lower(made, images).compile()
        )
        heads = _products_of_attention(model, layers)
        counted.append(compiled.cost_analysis()["flops"] - len(images) * (total.flops + heads))
    # What is not a product is the same in both, but for activations of hidden units that are gone.
    gone = sum(2 * 7 * info.tokens for info in spec.layers if info.path.endswith("/fc1"))
    assert abs(counted[0] - counted[1]) < len(images) * (60 * gone + 2000)
    assert counted[0] < 0.6 * len(images) * cost.total_cost(records.dense(spec.layers), spec.layers).flops


def _products_of_attention(model, layers):
    """Multiplies and adds of queries by keys and of the softmax by values, an image."""
    total = 0
    for info in layers:
        if info.path.endswith(("/query", "/value")):
            others = info.tokens if hasattr(model, "depth") else min(info.tokens, model.window_size**2)
            total += 2 * info.tokens * others * info.features_out
    return total


WRONG = {
    "give both the same": ("attn/key", {"width": 5}),
    "width 16; give 1 to 15": ("attn/query", {"width": 16}),
    "width 400; give 1 to 127": ("mlp/fc1", {"width": 400}),
    "only 'key' and 'value'": ("attn/proj", {"form": "pivoted", "basis": "input"}),
    "only a pair 'fc1'": ("mlp/fc2", {"basis": "leading"}),
    "no other float form": ("mlp/fc1", {"form": "low_rank"}),
    "basis 'outputs'": ("mlp/fc1", {"basis": "outputs"}),
    "only at ranks 1 to": ("mlp/fc1", {"rank": 32}),
    "smoothed_z, which": ("mlp/fc1", {"smoothed_z": True}),
    "a width alone": ("attn/query", {"form": "low_rank", "rank": 2}),
}
PARTNERS = {"attn/query": "attn/key", "mlp/fc1": "mlp/fc2"}


@pytest.mark.parametrize("words", WRONG)
def test_a_plan_that_does_not_fit_together_is_refused(words):
    spec = models.spec("vit_pico", num_classes=5, image_size=8)
    parts = blocks.blocks(info for info in spec.layers if info.compressible)
    plan = blocks.plan_of(spec.layers, {one.path: smaller(one) for one in parts})
    layer, fields = WRONG[words]
    changed = [layer, PARTNERS[layer]] if fields.keys() == {"width"} and layer in PARTNERS else [layer]
    for name in changed:
        path = f"blocks_0/{name}"
        plan[path] = dataclasses.replace(plan[path], **fields)
    with pytest.raises(UserError, match=words):
        check.check(plan, spec.layers)
