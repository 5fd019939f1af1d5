"""Ranks by shapes alone."""

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import ranks, records
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.cost import layer_cost, parameters
from lraqvit_jax.plan.records import LayerPlan, LinearInfo
from tests.unit import small

property_test = settings(max_examples=50, deadline=None, derandomize=True)
sizes = st.integers(2, 800)
INFO = LinearInfo("blocks_0/mlp/fc1", 32, 128, 17, "mlp")  # breaks even at 25.6
SQUARE = LinearInfo("blocks_0/attn/proj", 64, 64, 17, "attention")  # breaks even at exactly 32
LAYERS = [
    LinearInfo("a", 16, 48, 17, "attention"),
    LinearInfo("b", 24, 24, 17, "attention"),
    LinearInfo("c", 16, 64, 17, "mlp"),
]
DENSE = sum(parameters(layer, 0) for layer in LAYERS)


@property_test
@given(sizes, sizes, st.floats(0.05, 0.99), st.sampled_from([1, 4, 8, 16]))
def test_a_uniform_ratio_never_exceeds_its_budget_and_wastes_less_than_a_multiple(m, n, budget, multiple):
    info = LinearInfo("fc", m, n, 1, "mlp")
    affordable = Fraction(budget) * m * n / (m + n)
    try:
        rank = ranks.uniform_ratio([info], budget, multiple)["fc"]
    except UserError as error:
        assert "'fc'" in str(error)
        assert affordable < multiple
        return
    assert rank > 0
    assert rank % multiple == 0
    # Exact arithmetic but for the last bit of the product of floats.
    assert rank * (1 - Fraction(2, 2**52)) <= affordable
    assert affordable < rank + multiple + Fraction(1, 10**9)
    check({"fc": LayerPlan("low_rank", rank)}, [info])


@pytest.mark.parametrize("name", ["vit_pico", "vit_nano", "deit_tiny", "deit_base"])
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_a_whole_model_stays_within_its_budget(name, budget):
    spec = models.spec(name, num_classes=1000, image_size=224)
    options = PlanOptions(method="uniform_ratio", budget=budget, multiple=4)
    one = ranks.make_plan(spec.layers, options)
    check(one, spec.layers)
    encoder = [info for info in spec.layers if info.compressible]
    kept, dense = (
        sum(layer_cost(info, entry[info.path]).params - info.features_out for info in encoder)
        for entry in (one, records.dense(encoder))
    )
    assert 0.6 * budget < kept / dense <= budget
    assert all(one[info.path] == LayerPlan() for info in spec.layers if not info.compressible)


@pytest.mark.parametrize("budget", [0, -0.5, 1, 1.5, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget):
    with pytest.raises(UserError, match=r"plan\.budget"):
        ranks.uniform_ratio([INFO], budget)


@pytest.mark.parametrize("multiple", [0, -8])
def test_a_multiple_that_is_not_positive_is_refused(multiple):
    with pytest.raises(UserError, match=r"plan\.multiple"):
        ranks.uniform_ratio([INFO], 0.5, multiple)


def test_ranks_by_kind_leave_a_layer_dense_in_which_the_rank_does_not_pay():
    wide = dataclasses.replace(SQUARE, path="blocks_0/attn/qkv", features_out=192)  # breaks even at 48
    assert ranks.by_kind([wide, SQUARE, INFO], {"attention": 40, "mlp": 8}) == {
        wide.path: 40,
        SQUARE.path: 0,
        INFO.path: 8,
    }
    with pytest.raises(UserError, match="rank 48"):
        ranks.by_kind([wide, SQUARE, INFO], {"attention": 48, "mlp": 8})


def test_an_unknown_planning_method_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'by_kinds'; did you mean 'by_kind'"):
        ranks.make_plan(small.LAYERS, PlanOptions(method="by_kinds"))


def test_a_uniform_rank_is_the_largest_that_fits():
    def spent(chosen):
        return sum(parameters(layer, chosen[layer.path]) for layer in LAYERS)

    chosen = ranks.uniform_rank(LAYERS, 0.7, 2)
    (rank,) = {rank for rank in chosen.values() if rank}
    assert spent(chosen) <= 0.7 * DENSE
    more = {layer.path: rank + 2 if rank + 2 < layer.break_even else 0 for layer in LAYERS}
    assert spent(more) > 0.7 * DENSE


def test_a_rank_for_all_that_cannot_be_met_is_refused():
    with pytest.raises(UserError, match="leaves no rank"):
        ranks.uniform_rank(LAYERS, 0.05, 8)


@pytest.mark.parametrize("method", [*ranks.METHODS, *ranks.MEASURED])
def test_keeping_every_layer_dense_is_refused_and_keeping_a_kind_is_not(method):
    options = PlanOptions(method=method, attention_rank=4, mlp_rank=4, multiple=1)
    with pytest.raises(UserError, match=r"plan\.keep_dense covers every encoder layer"):
        ranks.make_plan(small.LAYERS, dataclasses.replace(options, keep_dense=("blocks_0", "blocks_1")))
    attention = tuple(info.path for info in small.LAYERS if info.kind == "attention")
    one = ranks.make_plan(small.LAYERS, dataclasses.replace(options, keep_dense=attention))
    assert {path for path, layer in one.items() if layer.rank} == {
        info.path for info in small.LAYERS if info.kind == "mlp"
    }
