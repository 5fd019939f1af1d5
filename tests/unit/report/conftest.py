"""A report with every section."""

import numpy as np
import pytest

from tests.unit.report.made import (
    add_answers,
    add_dense,
    add_int8,
    add_latency,
    add_low_rank,
    add_metrics,
    add_rows,
    opened,
    rendered,
)


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    """A page with every section, and its work directory."""
    ws, rng = opened(tmp_path_factory.mktemp("whole")), np.random.default_rng(0)
    add_rows(ws)
    add_dense(ws, rng)
    add_metrics(ws)
    add_int8(ws, rng)
    add_answers(ws, {"dense": [0, 1, 2], "int8_wads": [2, 3, 4, 5], "rb_lra_kd": [0, 1, 2]})
    add_latency(ws)
    add_low_rank(ws)
    return ws, rendered(ws)
