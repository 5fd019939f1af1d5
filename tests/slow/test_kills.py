"""Twenty random kills; `python -m tests.slow.kills` for more."""

import pytest

from tests.slow import kills


@pytest.mark.slow
def test_runs_killed_at_random_end_bit_identical(tmp_path):
    found = kills.drive(20, 0, 3.0, 20.0, tmp_path)
    assert found["kills"] == 20
    assert not found["failed"]
    assert not found["different"]
