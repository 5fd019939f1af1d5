"""What a search left on disk, by this version or another."""

import json

import pytest

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.records import Integers
from lraqvit_jax.stages import searched


def written(directory, **content):
    (directory / searched.FOLDER).mkdir()
    for name in ("plans.json", "search.json"):
        (directory / searched.FOLDER / name).write_text(json.dumps(content))


def test_what_rounding_loses_is_read_back_by_bits_and_groups(tmp_path):
    assert searched.widths(tmp_path) == {}
    written(tmp_path, schema=searched.SCHEMA, widths={"head": {"8": 0.0, "4/64": 0.5}})
    assert searched.widths(tmp_path) == {"head": {Integers(8): 0.0, Integers(4, 64): 0.5}}


def test_a_search_by_other_rules_is_not_gone_on_with(tmp_path):
    written(tmp_path, schema=searched.SCHEMA - 1, points=[], widths={"head": {"8": 0.0}})
    for read in (searched.widths, lambda directory: searched.Record(directory, {})):
        with pytest.raises(UserError, match="start a new work directory"):
            read(tmp_path)
