"""Plans, ranks and costs."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax import models, plan, sharding
from lraqvit_jax.errors import UserError
from lraqvit_jax.lowrank import ranks
from lraqvit_jax.plan import LayerPlan, LinearInfo
from lraqvit_jax.stages.evaluate import other_params
from tests.unit import small

INFO = LinearInfo("fc", 32, 128, 17, "mlp")


def deployed(name, one_plan, size=224, classes=1000):
    spec = models.spec(name, num_classes=classes, image_size=size)
    abstract = sharding.abstract_params(
        models.create(name, num_classes=classes, image_size=size, plan=one_plan), size, small.MESH
    )
    cost = plan.total_cost(one_plan, spec.layers)
    return (cost.params + other_params(abstract, one_plan)) / 1e6, cost.flops / 1e9


@pytest.mark.parametrize(
    ("name", "attention", "mlp", "millions", "gflops"),
    [
        ("deit_base", 240, 320, 44.395, 17.08),
        ("deit_base", 290, 290, 44.395, 17.08),
        ("deit_tiny", 112, 144, 5.20, None),
        ("deit_base", 0, 0, 86.57, 33.7),
        ("deit_tiny", 0, 0, 5.717, None),
    ],
)
def test_the_papers_parameters_and_gflops(name, attention, mlp, millions, gflops):
    """METHOD section 7."""
    spec = models.spec(name, num_classes=1000, image_size=224)
    options = {"method": "by_kind", "attention_rank": attention, "mlp_rank": mlp}
    got = deployed(name, ranks.make_plan(spec.layers, options))
    np.testing.assert_allclose(got[0], millions, atol=0.006)
    if gflops:
        np.testing.assert_allclose(got[1], gflops, atol=0.05)


@pytest.mark.parametrize("form", ["dense", "low_rank"])
@pytest.mark.parametrize("granularity", ["", *plan.GRANULARITIES])
def test_costs_are_those_of_the_arrays(form, granularity):
    """Parameters and bytes of the formula against the leaves that the model declares."""
    rank = small.RANK if form == "low_rank" else 0
    one = small.quantized_plan(rank, granularity) if granularity else small.plan(form)
    smoothed = {path: LayerPlan(**{**layer.__dict__, "smoothed": bool(granularity)}) for path, layer in one.items()}
    abstract = sharding.abstract_params(small.model(smoothed), 8, small.MESH)
    for info in small.LAYERS:
        node = abstract
        for name in info.path.split("/"):
            node = node[name]
        leaves = jax.tree.leaves(node)
        cost = plan.layer_cost(info, smoothed[info.path])
        assert cost.bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        weights = [leaf for leaf in leaves if leaf.ndim == 2 and leaf.shape[-1] > 1] if granularity else leaves
        assert cost.params == sum(leaf.size for leaf in weights) + (info.features_out if granularity else 0)


def test_a_pair_must_be_smaller_than_the_kernel():
    # 32 * 128 / 160 = 25.6
    plan.check({"fc": LayerPlan("low_rank", 25)}, [INFO])
    with pytest.raises(UserError, match="ranks 1 to 25"):
        plan.check({"fc": LayerPlan("low_rank", 26)}, [INFO])
    square = LinearInfo("fc", 64, 64, 17, "mlp")  # breaks even at exactly 32
    plan.check({"fc": LayerPlan("low_rank", 31)}, [square])
    with pytest.raises(UserError, match="ranks 1 to 31"):
        plan.check({"fc": LayerPlan("low_rank", 32)}, [square])


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (LayerPlan("lowrank", 4), "did you mean 'low_rank'"),
        (LayerPlan("low_rank"), "no rank"),
        (LayerPlan("dense", 4), "remove the rank"),
        (LayerPlan("quantized", 4), "0 bits"),
        (LayerPlan("low_rank", 4, 8), "8 bits"),
        (LayerPlan("quantized", 4, 4), "4 bits"),
        (LayerPlan("quantized", 4, 8, "per_image"), "per_image"),
        (LayerPlan("quantized", 4, 8, "per_token", 0.0), "clip"),
        (LayerPlan("low_rank", -1), "rank -1"),
    ],
)
def test_an_entry_that_makes_no_sense_is_named(entry, word):
    with pytest.raises(UserError, match=word) as caught:
        plan.check({"fc": entry}, [INFO])
    assert "'fc'" in str(caught.value)


def test_layers_must_match_the_model():
    with pytest.raises(UserError, match=r"'fcc'.*did you mean 'fc'"):
        plan.check({"fcc": LayerPlan()}, [INFO])
    with pytest.raises(UserError, match="leaves out layer 'fc'"):
        plan.check({}, [INFO])


def test_json_round_trip():
    one = small.quantized_plan(small.RANK, "per_token")
    assert plan.from_json(json.loads(json.dumps(plan.to_json(one)))) == one


@pytest.mark.parametrize(
    ("data", "word"),
    [([], "not a JSON object"), ({"fc": 3}, "'fc'"), ({"fc": {"rnak": 3}}, "rank"), ({"fc": {"rank": "3"}}, "'3'")],
)
def test_json_that_is_no_plan_is_named(data, word):
    with pytest.raises(UserError, match=word):
        plan.from_json(data)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(4, 800), st.integers(4, 800), st.floats(0.05, 0.99), st.sampled_from([1, 4, 8, 16]))
def test_uniform_ratio_uses_its_budget_and_no_more(m, n, budget, multiple):
    info = LinearInfo("fc", m, n, 1, "mlp")
    try:
        rank = ranks.uniform_ratio([info], budget, multiple)["fc"]
    except UserError:
        assert budget * info.break_even < multiple
        return
    assert rank % multiple == 0
    assert rank * (m + n) <= budget * m * n < (rank + multiple) * (m + n)
    plan.check({"fc": LayerPlan("low_rank", rank)}, [info])
