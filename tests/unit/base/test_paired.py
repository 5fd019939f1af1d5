"""The interval of a paired difference: its formula in plain numbers, its coverage by simulation, its limits."""

import numpy as np
import pytest

from lraqvit_jax.base import paired
from lraqvit_jax.base.errors import UserError


def answers(both, lost, gained, neither):
    dense = np.repeat([True, True, False, False], [both, lost, gained, neither])
    small = np.repeat([True, False, True, False], [both, lost, gained, neither])
    return dense, small


def test_by_hand():
    found = paired.drop(*answers(880, 15, 5, 100))
    assert found.drop == pytest.approx(1.0)
    assert found.images == 1000
    # p = 16/1002, q = 6/1002: .00998 +- 1.959964 sqrt((.021956 - .0000996) / 1002)
    assert found.low == pytest.approx(100 * (0.00998004 - 0.00915383), abs=1e-4)
    assert found.high == pytest.approx(100 * (0.00998004 + 0.00915383), abs=1e-4)


def test_more_images_and_less_confidence_make_it_narrower():
    few, many = paired.drop(*answers(88, 3, 1, 8)), paired.drop(*answers(880, 30, 10, 80))
    assert few.drop == many.drop
    assert many.high - many.low < few.high - few.low
    loose = paired.drop(*answers(88, 3, 1, 8), confidence=0.8)
    assert few.low < loose.low < loose.high < few.high


def test_equal_models_may_still_differ():
    found = paired.drop(*answers(50, 0, 0, 0))
    assert found.drop == 0
    assert found.low < 0 < found.high
    turned = paired.drop(*answers(50, 0, 50, 0))
    assert turned.drop == -50
    assert turned.low >= -100


@pytest.mark.parametrize(("images", "lost", "gained"), [(100, 0.03, 0.02), (300, 0.03, 0.02), (1000, 0.02, 0.005)])
def test_it_holds_the_truth_as_often_as_it_says(images, lost, gained, rng):
    shares = [0.85, lost, gained, 0.15 - lost - gained]
    found = [paired.drop(*answers(*counts)) for counts in rng.multinomial(images, shares, size=2000)]
    inside = np.mean([one.low <= 100 * (lost - gained) <= one.high for one in found])
    assert 0.935 <= inside <= 0.99


@pytest.mark.parametrize(("dense", "small"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_what_is_no_pair_is_refused(dense, small):
    with pytest.raises(UserError, match="the same images"):
        paired.drop(np.array(dense, bool), np.array(small, bool))
