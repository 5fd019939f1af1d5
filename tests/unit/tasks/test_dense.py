"""F measures and absolute errors of maps against loops over thresholds and examples by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.tasks import dense


def by_threshold(maps, masks, beta_squared=0.3):
    """F at each threshold from 255 down, one comparison after another."""
    found = []
    for threshold in range(255, -1, -1):
        precision, recall = [], []
        for values, mask in zip(maps, masks, strict=True):
            above = np.floor(values * 255) >= threshold
            hits = np.sum(above & mask)
            precision.append(hits / np.sum(above) if np.any(above) else 0)
            recall.append(hits / np.sum(mask))
        p, r = np.mean(precision), np.mean(recall)
        found.append((1 + beta_squared) * p * r / (beta_squared * p + r) if p + r else 0)
    return np.array(found)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_f_is_that_of_every_threshold(seed, count):
    draw = np.random.default_rng(seed)
    shapes = draw.integers(1, 9, (count, 2))
    maps = [draw.choice([draw.uniform(0, 1, shape), draw.integers(0, 2, shape) / 1.0]) for shape in shapes]
    masks = [draw.uniform(0, 1, shape) < 0.5 for shape in shapes]
    for mask in masks:
        mask[0, 0] = True
    np.testing.assert_allclose(dense.f_measures(maps, masks), by_threshold(maps, masks), atol=1e-9)
    assert dense.max_f_measure(maps, masks) == dense.f_measures(maps, masks).max()
    expected = np.mean([np.mean(np.abs(values - mask)) for values, mask in zip(maps, masks, strict=True)])
    assert dense.mean_absolute_error(maps, masks) == pytest.approx(expected)


def test_by_hand():
    masks = [np.array([[True, True, False, False]])]
    maps = [np.array([[0.9, 0.3, 0.4, 0.1]])]
    # At 0.9: P = 1, R = 1/2. At 0.3: P = 2/3, R = 1, which is 1.3 * 2/3 / (0.3 * 2/3 + 1).
    assert dense.max_f_measure(maps, masks) == pytest.approx(max(1.3 * 0.5 / (0.3 + 0.5), 1.3 * (2 / 3) / 1.2))
    assert dense.mean_absolute_error(maps, masks) == pytest.approx((0.1 + 0.7 + 0.4 + 0.1) / 4)
    assert dense.max_f_measure(masks, masks) == pytest.approx(1)


def test_photographs_count_alike_whatever_their_size():
    maps = [np.ones((1, 1)), np.zeros((10, 10))]
    masks = [np.ones((1, 1), bool), np.ones((10, 10), bool)]
    assert dense.mean_absolute_error(maps, masks) == 0.5


ONE = [np.full((2, 2), 0.5)]
BAD = [
    (lambda: dense.max_f_measure([], []), "one mask for each map"),
    (lambda: dense.max_f_measure(ONE, []), "1 maps and 0 masks"),
    (lambda: dense.max_f_measure(ONE, [np.ones((2, 3), bool)]), "give both the same"),
    (lambda: dense.max_f_measure([2 * np.ones((2, 2))], [np.ones((2, 2), bool)]), "outside 0 to 1"),
    (lambda: dense.max_f_measure([np.full((2, 2), np.nan)], [np.ones((2, 2), bool)]), "outside 0 to 1"),
    (lambda: dense.max_f_measure(ONE, [np.zeros((2, 2), bool)]), "Mask 0 has no object"),
    (lambda: dense.mean_absolute_error([np.ones((0, 2))], [np.ones((0, 2), bool)]), "Map 0"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_what_has_no_answer_is_said(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_a_map_without_an_object_has_an_absolute_error():
    assert dense.mean_absolute_error(ONE, [np.zeros((2, 2), bool)]) == 0.5
