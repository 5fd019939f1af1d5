"""Our own models through `trace`: the same moments, ranks, parameters and logits as through their Linen front."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.calibration import observe
from lraqvit_jax.lowrank import block, kfac, pairs
from lraqvit_jax.plan import blocks as plan_blocks
from lraqvit_jax.plan import budget, cost, records
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.trace import moments, places, products, rewrite, sizes
from tests.unit import small
from tests.unit.models import test_by_head as by_head

SIZES = {"vit_pico": 8, "deit_tiny_distilled_dim32_depth2_heads2_patch4": 8, "swin_pico": 8}
"""Sizes whose windows tile: where Swin's padding comes between the norm and qkv, sites count its zeros too."""


def model_of(name, rng):
    size = SIZES[name]
    spec = models.spec(name, num_classes=10, image_size=size)
    model = models.create(name, num_classes=10, image_size=size)
    batches = [rng.standard_normal((4, size, size, 3)).astype(np.float32) for _ in range(6)]
    shapes = small.unboxed(model, batches[0])
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return model, spec, params, batches


@pytest.mark.parametrize("name", SIZES)
def test_every_layer_is_a_site_with_the_same_moments_ranks_and_logits(name, rng):
    model, spec, params, batches = model_of(name, rng)

    def apply(params, images):
        return model.apply({"params": params}, images)

    sites = products.find(apply, params, batches[0])
    of_layer = {info.path: f"{info.path}/kernel" for info in spec.layers}
    found = {site.path: site.info() for site in sites}
    assert set(found) == set(of_layer.values())
    for info in spec.layers:
        site = sites[of_layer[info.path]]
        assert (site.features_in, site.features_out, site.tokens) == (info.features_in, info.features_out, info.tokens)
        assert (site.bias == f"{info.path}/bias") == info.bias
        assert site.kind == {"embed": "embed", "head": "head"}.get(info.kind, "mlp") or "downsample" in info.path
    assert sites.covered == 1

    layers = [info for info in spec.layers if info.compressible]
    rows = [{"image": batch, "label": np.zeros(4, np.int32), "mask": np.ones(4, bool)} for batch in batches]
    linen = observe.moments(model, params, layers, rows, small.MESH, gradients=True, seed=3)
    dense, leaves = rewrite.rewrite(apply, params, {}, sites)
    chosen = [sites[of_layer[info.path]] for info in layers]
    traced = moments.moments(dense, leaves, chosen, batches, "logits", seed=3)
    for info in layers:
        one, other = linen[info.path], traced[of_layer[info.path]]
        for field in ("second", "mean", "magnitude"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-4, rtol=1e-4)
        # The projections are drawn otherwise: of the gradients only the kind is the same.
        assert other.gradient.shape == one.gradient.shape
        assert np.linalg.eigvalsh(other.gradient).min() > -1e-6 * np.trace(other.gradient)

    same_gradients = {
        info.path: traced[of_layer[info.path]]._replace(gradient=linen[info.path].gradient) for info in layers
    }
    plans, kernels = [], {}
    for source in (linen, same_gradients):
        curves = {}
        for info in layers:
            kernel = np.asarray(trees.get(params, info.path)["kernel"], np.float64)
            curves[info.path] = budget.loss_curve(kfac.losses(kernel, source[info.path]))
        ranks = budget.least_loss(layers, curves, 0.6)
        plans.append(ranks)
        for path, rank in ranks.items():
            if rank:
                made = pairs.pair("kfac", trees.get(params, path), rank, source[path])
                kernels.setdefault(path, []).append(made["u"] @ made["v"])
    assert plans[0] == plans[1]
    for path, (one, other) in kernels.items():
        second = linen[path].second  # Where inputs hardly vary, directions are a matter of float32; outputs are not.
        changed, whole = (np.einsum("in,ij,jn->", k, second, k) for k in (one - other, one))
        assert changed < 1e-3 * whole, path

    ranks = {path: rank for path, rank in plans[0].items() if rank}
    made = {path: pairs.pair("kfac", trees.get(params, path), rank, linen[path]) for path, rank in ranks.items()}
    plan = {path: LayerPlan("low_rank", rank) for path, rank in ranks.items()}
    whole = {info.path: plan.get(info.path, LayerPlan()) for info in spec.layers}
    ours = models.create(name, num_classes=10, image_size=SIZES[name], plan=whole)
    want = small.apply(ours, trees.replace(params, made), batches[0])
    names = {of_layer[path]: entry for path, entry in plan.items()}
    function, values = rewrite.rewrite(apply, params, names, sites, {of_layer[path]: one for path, one in made.items()})
    got = jax.jit(function)(values, batches[0])
    np.testing.assert_allclose(got, want, atol=2e-5 * float(jnp.abs(want).max()))


def test_the_gradients_moment_is_that_of_all_projections(rng):
    """Against the Jacobian itself: `E[g gᵀ]` is `Jᵀ J` of the centred logits, summed over tokens."""
    w, v = rng.standard_normal((5, 4)), rng.standard_normal((4, 6))

    def apply(params, x):
        return jnp.tanh(x @ params["w"]).mean(1) @ params["v"]

    params = {"w": w.astype(np.float32), "v": v.astype(np.float32)}
    batches = [rng.standard_normal((16, 2, 5)).astype(np.float32) for _ in range(200)]
    sites = products.find(apply, params, batches[0])
    dense, leaves = rewrite.rewrite(apply, params, {}, sites)
    got = moments.moments(dense, leaves, [sites["w"]], batches, "logits")["w"].gradient
    x = np.concatenate(batches).astype(np.float64)
    slope = 1 - np.tanh(x @ w) ** 2  # (examples, tokens, 4)
    centred = v - v.mean(1, keepdims=True)
    want = np.einsum("bti,btj,io,jo->ij", slope / 2, slope / 2, centred, centred) / len(x)
    np.testing.assert_allclose(got, want, atol=0.06 * np.abs(want).max())


@pytest.mark.parametrize("name", ["vit_pico", "swin"])
def test_sizes_of_blocks_and_what_they_become_are_those_of_the_linen_front(name, rng):
    """With the same moments: the same channels, hidden units and ranks under a budget, and the same logits."""
    variant, model, params, spec, seen, images = by_head.subject(name, rng)

    def apply(params, images):
        return model.apply({"params": params}, images)

    encoder = [info for info in spec.layers if info.path in seen and info.kind != "embed"]
    blocks_of = plan_blocks.blocks(encoder)
    encoder = [info for one in blocks_of for info in (*one.attention, *one.mlp)]
    solved = block.solve(blocks_of, params, seen)
    curves = {path: one.curves for path, one in solved.items()}
    problem = plan_blocks.Problem(
        blocks_of,
        curves,
        lambda info, layer: cost.layer_cost(bare(info), layer).params,
        0.6 * sum(info.features_in * info.features_out for info in encoder),
        1,
        1,
    )
    chosen = problem.solve({(one.path, part): plan_blocks.Scale() for one in blocks_of for part in plan_blocks.PARTS})

    sites = products.find(apply, params, images)
    layers = {
        f"{info.path}/kernel": places.Layer.of(
            sites[f"{info.path}/kernel"], trees.get(params, info.path), seen[info.path]
        )
        for info in encoder
    }
    found = sizes.places(sites, layers)
    choices = {
        one.name: one.choices({key: plan_blocks.Scale() for key in places.unmeasured(found)}, 1) for one in found
    }
    limit = 0.6 * sum(layer.kernel.size for layer in layers.values())
    picked = {key: choice.size for key, choice in budget.cheapest(choices, limit).items()}
    for one in blocks_of:
        want = chosen[one.path]
        got = picked[f"{one.path}/attn/proj/kernel:score"] | picked[f"{one.path}/attn/proj/kernel:value"]
        assert plan_blocks.Sizes(**got, **picked[f"{one.path}/mlp/fc2/kernel:mlp"]) == want

    made, biases = [], {}
    for place in found:
        of_place, changed = place.made({**place.sizes, **picked[place.name]})
        made += of_place
        for path, bias in changed.items():
            biases[path] = biases.get(path, layers[path].bias) + bias - layers[path].bias
    function, values = rewrite.of_parts(apply, params, made, biases, sites)
    fixed, plan = by_head.shrunk(spec, params, seen, lambda one: chosen[one.path])
    linen = models.create(variant, num_classes=5, image_size=images.shape[1], plan=plan)
    want = small.apply(linen, fixed, images)
    np.testing.assert_allclose(jax.jit(function)(values, images), want, atol=5e-5 * float(jnp.abs(want).max()))
    kernels = sum(cost.layer_cost(bare(info), plan[info.path]).params for info in records.resolved(encoder, plan))
    assert sum(cost.layer_cost(part.info, part.entry).params for part in made) == kernels


def bare(info):
    return dataclasses.replace(info, bias=False)
