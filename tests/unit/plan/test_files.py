"""Plans as JSON."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.files import from_json, read_plan, to_json
from lraqvit_jax.plan.records import LayerPlan
from tests.unit import small
from tests.unit.plan import plans

property_test = settings(max_examples=100, deadline=None, derandomize=True)


@property_test
@given(st.dictionaries(st.text(min_size=1), plans.layers_with_entries().map(lambda layer: layer[1])))
def test_a_plan_comes_back_from_json_as_it_was(one):
    assert from_json(json.loads(json.dumps(to_json(one)))) == one


def test_a_plan_comes_back_from_its_file(tmp_path):
    one = small.quantized_plan(small.RANK, "per_token")
    (tmp_path / "plan.json").write_text(json.dumps(to_json(one)))
    assert read_plan(tmp_path / "plan.json") == one


def test_a_field_left_out_takes_its_default_and_a_whole_number_will_do_for_a_share():
    assert from_json({"fc": {"form": "low_rank", "rank": 3, "clip": 1}}) == {"fc": LayerPlan("low_rank", 3)}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (3, "is not an object"),
        (None, "is not an object"),
        ({"rnak": 3}, "unknown field 'rnak'; did you mean 'rank'"),
        ({"rank": "3"}, "rank = '3'; it is a int"),
        ({"rank": 3.0}, "rank = 3.0"),
        ({"rank": True}, "rank = True"),
        ({"rank": None}, "rank = None"),
        ({"form": 1}, "form = 1; it is a str"),
        ({"clip": "1"}, "clip = '1'; it is a float"),
        ({"smoothed": 1}, "smoothed = 1; it is a bool"),
    ],
)
def test_fields_of_another_type_are_refused_by_the_name_of_their_layer(fields, says):
    with pytest.raises(UserError, match=says) as caught:
        from_json({"blocks_0/attn/qkv": fields}, "plan.json")
    assert "Layer 'blocks_0/attn/qkv' in plan.json" in str(caught.value)


@pytest.mark.parametrize("data", [[], "plan", 3, None])
def test_json_that_is_no_mapping_is_refused(data):
    with pytest.raises(UserError, match=r"plan\.json is not a JSON object"):
        from_json(data, "plan.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", None], ids=["empty", "cut_off", "binary", "no_file"])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json cannot be read"):
        read_plan(path)
