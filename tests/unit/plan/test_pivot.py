"""Pairs with identity blocks: the ranks that they allow, what they store, and that they compute what plain pairs do."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.lowrank import gauge
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import ranks, records
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.stages.plan import rank_cost
from tests.unit import small

METHODS = {
    "uniform_ratio": {"budget": 0.9},
    "uniform_rank": {"budget": 0.9},
    "by_dimension": {"budget": 0.9},
    "by_kind": {"attention_rank": 28, "mlp_rank": 30},
}


def planned(model, method):
    spec = models.spec(model, num_classes=5, image_size=8)
    plan = ranks.make_plan(spec.layers, PlanOptions(method=method, multiple=1, pivot=True, **METHODS[method]))
    check(plan, spec.layers)
    return spec, plan


@pytest.mark.parametrize("model", ["vit_pico", "swin_pico"])
@pytest.mark.parametrize("method", METHODS)
def test_deployed_pairs_compute_what_plain_ones_do_and_store_what_is_counted(model, method, rng):
    spec, plan = planned(model, method)
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    trained = models.create(model, num_classes=5, image_size=8, plan=records.low_rank(plan))
    deployed = models.create(model, num_classes=5, image_size=8, plan=records.merged(plan))
    params = jax.tree.map(
        lambda leaf: rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32), small.unboxed(trained, images)
    )
    fixed, largest = gauge.fix(params, plan, records.resolved(spec.layers, plan))
    assert largest <= 1.5
    expected = np.asarray(small.apply(trained, params, images))
    np.testing.assert_allclose(small.apply(deployed, fixed, images), expected, atol=3e-5 * np.abs(expected).max())

    stored = [leaf for info in spec.layers for leaf in jax.tree.leaves(trees.get(fixed, info.path))]
    total = total_cost(plan, spec.layers)
    assert total.params == sum(leaf.size for leaf in stored if leaf.dtype == np.float32)
    assert total.bytes == sum(leaf.nbytes for leaf in stored)
    encoder = [info for info in spec.layers if info.compressible]
    assert any(plan[info.path].rank > info.break_even for info in encoder)
    if method in ("uniform_ratio", "uniform_rank"):
        kernels = sum(
            leaf.size for info in encoder for leaf in jax.tree.leaves(trees.get(fixed, info.path)) if leaf.ndim == 2
        )
        assert 0.8 < kernels / sum(info.features_in * info.features_out for info in encoder) <= 0.9


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(2, 800), st.integers(2, 800), st.floats(0.05, 0.99), st.sampled_from([1, 4, 8]))
def test_a_uniform_ratio_is_the_largest_multiple_that_the_budget_buys(m, n, budget, multiple):
    info = LinearInfo("fc", m, n, 1, "mlp", pivoted=True)
    paying = [r for r in range(multiple, min(m, n), multiple) if r * (m + n - r) <= budget * m * n]
    if not paying:
        with pytest.raises(UserError, match="no rank"):
            ranks.uniform_ratio([info], budget, multiple)
        return
    assert ranks.uniform_ratio([info], budget, multiple) == {"fc": paying[-1]}


def test_identity_blocks_are_placed_where_fewest_channels_are_gathered():
    _, plan = planned("vit_pico", "uniform_ratio")
    places = {path.rpartition("/")[2]: layer.basis for path, layer in plan.items() if layer.rank}
    assert places == {"qkv": "input", "proj": "output", "fc1": "leading", "fc2": "output"}


@pytest.mark.parametrize("name", ["attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"])
def test_every_unit_counts_the_identity_block(name, tmp_path):
    """Of bytes float32 kernels and bias, and two for each channel that is named; of milliseconds a straight line."""
    m, n, r, path = 30, 40, 20, f"blocks_0/{name}"
    info = LinearInfo(path, m, n, 5, "mlp", pivoted=True)
    table = {"features_in": m, "features_out": n, "tokens": 5, "ms": {"0": m * n, "2": 2 * (m + n), "8": 8 * (m + n)}}
    (tmp_path / "table.json").write_text(json.dumps({"layers": [table]}))
    numbers = r * (m + n - r)
    wanted = {
        "params": numbers,
        "macs": 5 * numbers,
        "bytes": 4 * (numbers + n) + 2 * r * (name != "mlp/fc1"),
        "latency": numbers,
    }
    for unit, cost in wanted.items():
        options = PlanOptions(unit=unit, pivot=True, latency=str(tmp_path / "table.json"))
        assert rank_cost(options, {path: records.LayerPlan()})(info, r) == pytest.approx(cost)


def test_products_places_identity_blocks_itself():
    spec = models.spec("vit_pico", num_classes=5, image_size=8)
    with pytest.raises(UserError, match=r"plan\.pivot .* drop it"):
        ranks.make_plan(spec.layers, PlanOptions(method="products", pivot=True))
