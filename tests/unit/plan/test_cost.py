"""What layers cost, against the arrays that models declare, and against published sizes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import sharding
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import ranks
from lraqvit_jax.plan.cost import Cost, latency, layer_cost, total_cost
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, low_rank
from lraqvit_jax.stages.evaluate import other_params
from tests.unit import small
from tests.unit.plan import plans

INFO = LinearInfo("blocks_0/mlp/fc1", 32, 128, 17, "mlp")  # breaks even at 25.6


def declared(model, plan, path):
    """The arrays of one layer of a model with this plan."""
    return jax.tree.leaves(trees.get(abstract(model, tuple(sorted(plan.items()))), path))


@functools.lru_cache(1)
def abstract(model, plan):
    return sharding.abstract_params(models.create(model, num_classes=10, image_size=8, plan=dict(plan)), 8, small.MESH)


@pytest.mark.parametrize("model", ["vit_pico", "swin_pico"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_bytes_and_parameters_are_those_of_the_arrays_that_the_model_declares(model, data):
    """Each layer in any form, with any grid. Parameters are those of the same ranks in float: scales are bytes only.
    A branch is merged before a model is deployed, and so counts as its pair."""
    layers = models.spec(model, num_classes=10, image_size=8).layers
    plan = data.draw(plans.plans(layers))
    deployed = {
        path: dataclasses.replace(layer, form="low_rank") if layer.form == "reparam" else layer
        for path, layer in plan.items()
    }
    for info in layers:
        cost = layer_cost(info, plan[info.path])
        leaves = declared(model, deployed, info.path)
        assert cost.bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves), info
    for info in layers:
        leaves = declared(model, low_rank(plan), info.path)
        assert layer_cost(info, plan[info.path]).params == sum(leaf.size for leaf in leaves), info


@settings(max_examples=200, deadline=None, derandomize=True)
@given(plans.layers_with_entries(forms=("low_rank", "reparam", "quantized")))
def test_every_rank_more_costs_more_and_a_pair_less_than_the_kernel(layer):
    info, entry = layer
    assume(entry.rank)
    cost, more, whole = (
        layer_cost(info, dataclasses.replace(entry, rank=rank)) for rank in (entry.rank, entry.rank + 1, 0)
    )
    assert cost.params < more.params
    assert cost.flops < more.flops
    assert cost.bytes < more.bytes
    assert cost.params < whole.params
    assert cost.flops < whole.flops


def deployed(name, one):
    """Millions of parameters and GFLOPs of the linear layers, for 1,000 classes at 224 pixels."""
    spec = models.spec(name, num_classes=1000, image_size=224)
    model = models.create(name, num_classes=1000, image_size=224, plan=one)
    cost = total_cost(one, spec.layers)
    return (cost.params + other_params(sharding.abstract_params(model, 224, small.MESH), one)) / 1e6, cost.flops / 1e9


def by_kind(name, attention, mlp):
    layers = models.spec(name, num_classes=1000, image_size=224).layers
    return ranks.make_plan(layers, PlanOptions(method="by_kind", attention_rank=attention, mlp_rank=mlp))


@pytest.mark.parametrize("name", ["vit_base", "deit_base"])
def test_deit_base_at_the_papers_size(name):
    """Table 1: 44.4 M and 17.1 G."""
    millions, gflops = deployed(name, by_kind(name, 240, 320))
    assert abs(millions - 44.395) < 0.01
    assert abs(gflops - 17.08) < 0.05


def test_one_rank_of_290_is_the_same_size_as_240_and_320():
    np.testing.assert_allclose(
        deployed("deit_base", by_kind("deit_base", 290, 290)), deployed("deit_base", by_kind("deit_base", 240, 320))
    )


def test_dense_deit_base_is_of_the_published_size():
    """timm counts 86,567,656."""
    millions, gflops = deployed("deit_base", by_kind("deit_base", 0, 0))
    assert round(millions * 1e6) == 86_567_656
    assert abs(gflops - 33.7) < 0.05


def test_deit_tiny_at_the_papers_size():
    """Table 1: 5.7 M dense (timm counts 5,717,416) and 5.2 M."""
    assert round(deployed("deit_tiny", by_kind("deit_tiny", 0, 0))[0] * 1e6) == 5_717_416
    millions, gflops = deployed("deit_tiny", by_kind("deit_tiny", 112, 144))
    assert abs(millions - 5.20) < 0.01
    assert 1.93 <= gflops <= 1.97  # the paper says 1.8, which 5.2 M parameters exclude


def test_costs_add_up():
    one = small.quantized_plan(small.RANK, "per_token")
    costs = [layer_cost(info, one[info.path]) for info in small.LAYERS]
    total = total_cost(one, small.LAYERS)
    for field in dataclasses.fields(Cost):
        assert getattr(total, field.name) == sum(getattr(cost, field.name) for cost in costs)


def test_flops_are_two_for_each_multiply_accumulate_of_the_kernels():
    assert layer_cost(INFO, LayerPlan()).flops == 2 * 17 * 32 * 128
    assert layer_cost(INFO, LayerPlan("low_rank", 7)).flops == 2 * 17 * (32 * 7 + 7 * 128)
    assert layer_cost(INFO, LayerPlan("quantized", 7, 8)).flops == 2 * 17 * (32 * 7 + 7 * 128)


def test_a_latency_table_gives_milliseconds_between_what_was_measured():
    wide, thin = LinearInfo("a", 32, 32, 100, "mlp"), LinearInfo("b", 32, 32, 1, "mlp")
    table = {"layers": [{"features_in": 32, "features_out": 32, "tokens": 100, "ms": {"0": 1, "8": 0.5, "16": 0.9}}]}
    cost = latency(table)
    assert [cost(wide, rank) for rank in (0, 8, 12, 16)] == pytest.approx([1, 0.5, 0.7, 0.9])
    with pytest.raises(UserError, match="no layer of 32 x 32 with 1 rows"):
        cost(thin, 8)
    with pytest.raises(UserError, match="not a table of bench layers"):
        latency({"rows": []})
