"""Cosines, neighbours and rank correlation against SciPy, brute force and examples by hand."""

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.tasks import embedding


def test_cosines_are_scipys(rng):
    one, other = rng.normal(size=(2, 7, 5))
    expected = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(embedding.cosines(one, other), expected)
    np.testing.assert_allclose(embedding.cosines(3 * one, -0.5 * one), -1)


def test_neighbours_are_those_of_brute_force(rng):
    one, other = rng.normal(size=(2, 40, 3)) * rng.uniform(0.1, 9, (2, 40, 1))

    def nearest(vectors, row):
        others = [index for index in range(len(vectors)) if index != row]
        return min(others, key=lambda index: scipy.spatial.distance.cosine(vectors[row], vectors[index]))

    same = [nearest(one, row) == nearest(other, row) for row in range(40)]
    assert embedding.neighbour_agreement(one, other) == pytest.approx(100 * np.mean(same))
    assert embedding.neighbour_agreement(one, np.hstack([one, one])) == 100


def test_agreement_by_hand():
    angles = np.radians([0, 10, 25, 90])  # nearest: 1, 0, 1, 2
    moved = np.radians([0, 10, 15, 90])  # nearest: 1, 2, 1, 2
    one, other = (np.stack([np.cos(x), np.sin(x)], 1) for x in (angles, moved))
    assert embedding.neighbour_agreement(one, other) == 75


scores = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=40)


@given(scores)
def test_spearman_is_scipys_with_equal_values(pairs):
    one, other = np.array(pairs, float).T
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        with pytest.raises(UserError, match="no order"):
            embedding.spearman(one, other)
        return
    found = embedding.spearman(one, other)
    assert found == pytest.approx(scipy.stats.spearmanr(one, other).statistic, abs=1e-12)
    assert found == pytest.approx(embedding.spearman(np.exp(one), other), abs=1e-12)  # Ranks alone count.
    assert found == pytest.approx(-embedding.spearman(-one, other), abs=1e-12)


BAD = [
    (lambda: embedding.cosines(np.ones((2, 3)), np.ones((3, 3))), "one shape"),
    (lambda: embedding.cosines(np.ones((0, 3)), np.ones((0, 3))), r"first is of shape \(0, 3\)"),
    (lambda: embedding.cosines(np.ones(3), np.ones(3)), "vectors as rows"),
    (lambda: embedding.cosines(np.ones((2, 3)), np.zeros((2, 3))), "second has a row that is zero"),
    (lambda: embedding.cosines(np.full((2, 3), np.nan), np.ones((2, 3))), "no direction"),
    (lambda: embedding.neighbour_agreement(np.ones((2, 3)), np.ones((2, 3))), "from 3"),
    (lambda: embedding.neighbour_agreement(np.ones((4, 3)), np.ones((3, 3))), "as many of each"),
    (lambda: embedding.spearman([1, 2, 3], [1, 2]), "one length"),
    (lambda: embedding.spearman([], []), "from 2"),
    (lambda: embedding.spearman([1, np.nan, 3], [1, 2, 3]), "not all numbers"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_what_has_no_answer_is_said(call, words):
    with pytest.raises(UserError, match=words):
        call()
