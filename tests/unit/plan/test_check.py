"""What a plan may say: all that a model can be built from and that saves something, and nothing else."""

import dataclasses

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.models.linear import Linear, LinearOptions
from lraqvit_jax.options.quant import ATTENTION, BITS, GRANULARITIES
from lraqvit_jax.plan.check import check, check_layer
from lraqvit_jax.plan.records import FORMS, LayerPlan, LinearInfo, dense
from tests.unit import small
from tests.unit.plan import plans

property_test = settings(max_examples=200, deadline=None, derandomize=True)
INFO = LinearInfo("blocks_0/mlp/fc1", 32, 128, 17, "mlp")  # breaks even at 25.6
SQUARE = LinearInfo("blocks_0/attn/proj", 64, 64, 17, "attention")  # breaks even at exactly 32


@property_test
@given(plans.layers_with_entries())
def test_every_entry_that_makes_sense_is_accepted(layer):
    check_layer(*layer)


def outside(low, high):
    return (
        st.floats(max_value=low, exclude_max=True) | st.floats(min_value=high, exclude_min=True) | st.just(float("nan"))
    )


@st.composite
def spoiled(draw):
    """A layer, an entry that makes sense, and a value of one field that does not go with the others."""
    info, entry = draw(plans.layers_with_entries())
    quantized, pair = entry.form == "quantized", entry.form in ("low_rank", "reparam")
    numbers, words = st.integers(-2, 2000), st.text(max_size=9)
    wrong = {
        "form": words.filter(lambda form: form not in FORMS),
        "granularity": words.filter(lambda granularity: granularity not in GRANULARITIES),
        "clip": outside(0, 1) | st.just(0.0),
        "clip_z": outside(0, 1),
        "group": st.integers(max_value=-1),
        "bits": numbers.filter(lambda bits: bits not in (BITS if quantized else (0,))),
        "weight_bits": numbers.filter(lambda bits: bits not in ((0, *BITS) if quantized else (0,))),
        "rank": numbers.filter(lambda rank: rank not in plans.ranks(info) and (rank != 0 or pair)),
        "attention": words.filter(lambda attention: attention not in ATTENTION),
    }
    if not quantized or not info.path.endswith("/qkv"):
        wrong["attention"] |= st.sampled_from(["uniform", "log_sqrt2"])
    if not quantized:
        wrong |= {"smoothed": st.just(True), "asymmetric": st.just(True)}
        wrong["granularity"] |= st.sampled_from([one for one in GRANULARITIES if one != entry.granularity])
        wrong["group"] |= st.integers(1, 50)
    if entry.form == "dense":
        wrong["rank"] = st.integers(1, 2000)
    field = draw(st.sampled_from(sorted(wrong)))
    return info, dataclasses.replace(entry, **{field: draw(wrong[field])})


@property_test
@given(spoiled())
def test_one_field_that_does_not_go_with_the_others_is_refused_by_the_name_of_the_layer(layer):
    with pytest.raises(UserError) as caught:
        check_layer(*layer)
    assert repr(layer[0].path) in str(caught.value)


@st.composite
def mixed_up(draw):
    """Entries of fields that were drawn with no regard to each other, most of them nonsense."""
    return LayerPlan(
        draw(st.sampled_from([*FORMS, "sparse"])),
        draw(st.integers(-1, 9)),
        draw(st.sampled_from([0, 0, 5, *BITS])),
        draw(st.sampled_from([*GRANULARITIES, "per_image"])),
        weight_bits=draw(st.sampled_from([0, 0, 3, *BITS])),
        group=draw(st.sampled_from([-1, 0, 3, 50])),
        smoothed=draw(st.booleans()),
        smoothed_z=draw(st.booleans()),
        asymmetric=draw(st.booleans()),
    )


@property_test
@given(mixed_up(), st.integers(2, 20), st.integers(2, 20))
def test_what_is_accepted_can_be_built_and_has_no_more_parameters(entry, m, n):
    info = LinearInfo("fc", m, n, 3, "mlp")
    try:
        check_layer(info, entry)
    except UserError:
        return
    layer = Linear(n, LinearOptions(plan=(("", entry),)), axes=("embed", "mlp"))
    x = jax.ShapeDtypeStruct((2, 3, m), "float32")
    y, params = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x), x)
    assert y.shape == (2, 3, n)
    factors = {"kernel": m * n} if not entry.rank else {"u": m * entry.rank, "v": entry.rank * n}
    assert factors.keys() <= params["params"].keys()
    assert sum(factors.values()) <= m * n


@pytest.mark.parametrize(("info", "last"), [(INFO, 25), (SQUARE, 31)])
@pytest.mark.parametrize(("form", "bits"), [("low_rank", 0), ("reparam", 0), ("quantized", 8)])
def test_a_rank_below_break_even_is_accepted_and_one_at_it_refused(info, last, form, bits):
    check({info.path: LayerPlan(form, last, bits)}, [info])
    with pytest.raises(UserError, match=f"'{info.path}'.*rank {last + 1}.*ranks 1 to {last}"):
        check({info.path: LayerPlan(form, last + 1, bits)}, [info])


@property_test
@given(st.integers(2, 800), st.integers(2, 800))
def test_the_accepted_ranks_are_those_that_save_parameters(m, n):
    info = LinearInfo("fc", m, n, 1, "mlp")
    first_refused = next(rank for rank in range(1, m * n + 1) if rank * (m + n) >= m * n)
    if first_refused > 1:
        check({"fc": LayerPlan("low_rank", first_refused - 1)}, [info])
    with pytest.raises(UserError):
        check({"fc": LayerPlan("low_rank", first_refused)}, [info])


WRONG = [
    (LayerPlan("lowrank", 4), "'lowrank'; did you mean 'low_rank'"),
    (LayerPlan("low_rank"), "no rank"),
    (LayerPlan("reparam"), "no rank"),
    (LayerPlan("dense", 4), "is dense but has rank 4"),
    (LayerPlan("quantized", 4), "'quantized' with 0 bits"),
    (LayerPlan("dense", bits=8), "'dense' with 8 bits"),
    (LayerPlan("low_rank", 4, 8), "'low_rank' with 8 bits"),
    (LayerPlan("quantized", 4, 2), "with 2 bits"),
    (LayerPlan("quantized", 4, 8, weight_bits=2), "2 of them for the kernel"),
    (LayerPlan("low_rank", 4, weight_bits=8), "8 of them for the kernel"),
    (LayerPlan("quantized", 4, 8, group=-1), "group -1"),
    (LayerPlan("quantized", 4, 8, "per_image"), "'per_image'"),
    (LayerPlan("quantized", 4, 8, "per_token", 0.0), "clip 0.0"),
    (LayerPlan("quantized", 4, 8, "per_token", 1.5), "clip 1.5"),
    (LayerPlan("quantized", 4, 8, "per_token", float("nan")), "clip nan"),
    (LayerPlan("low_rank", -1), "rank -1"),
    (LayerPlan("quantized", -1, 8), "rank -1"),
]


@pytest.mark.parametrize(("entry", "says"), WRONG)
def test_an_entry_that_makes_no_sense_is_refused_by_the_name_of_its_layer(entry, says):
    with pytest.raises(UserError, match=says) as caught:
        check({INFO.path: entry}, [INFO])
    assert repr(INFO.path) in str(caught.value)


def test_a_plan_names_every_layer_of_the_model_and_no_other():
    whole = dense(small.LAYERS)
    check(whole, small.LAYERS)
    with pytest.raises(UserError, match=r"'blocks_0/attn/qvk'.*did you mean 'blocks_0/attn/qkv'"):
        check({**whole, "blocks_0/attn/qvk": LayerPlan()}, small.LAYERS)
    del whole["head"]
    with pytest.raises(UserError, match="leaves out layer 'head'"):
        check(whole, small.LAYERS)
