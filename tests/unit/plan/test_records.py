"""Plans that are made of others."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.records import dense, low_rank
from tests.unit import small
from tests.unit.plan import plans

property_test = settings(max_examples=100, deadline=None, derandomize=True)
FORMS = st.sampled_from(["low_rank", "reparam"])


def test_low_rank_turns_every_planned_pair_into_the_form_and_the_rest_dense():
    quantized = small.quantized_plan(small.RANK, "per_token")
    for form in ("low_rank", "reparam"):
        assert low_rank(quantized, form) == small.plan(form)


@property_test
@given(plans.plans(small.LAYERS), FORMS, FORMS)
def test_low_rank_depends_on_ranks_alone_and_twice_is_once(plan, first, second):
    pairs = low_rank(plan, second)
    assert low_rank(low_rank(plan, first), second) == pairs
    assert {path: layer.rank for path, layer in pairs.items()} == {path: layer.rank for path, layer in plan.items()}
    check(pairs, small.LAYERS)


def test_the_dense_plan_is_low_rank_of_itself():
    assert low_rank(dense(small.LAYERS)) == dense(small.LAYERS)
