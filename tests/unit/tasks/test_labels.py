"""Top-k, agreement and divergence of logits against scikit-learn, SciPy and examples by hand."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.tasks import labels


@given(st.integers(0, 2**32 - 1))
def test_as_others_count_them(seed):
    draw = np.random.default_rng(seed)
    logits, dense = draw.normal(size=(2, 20, 7), scale=3)
    classes, k = draw.integers(0, 7, 20), int(draw.integers(1, 6))
    expected = top_k_accuracy_score(classes, logits, k=k, labels=range(7))
    assert labels.top_k(logits, classes, k) == pytest.approx(100 * expected)
    one, other = (np.exp(values) / np.exp(values).sum(-1, keepdims=True) for values in (logits, dense))
    assert labels.divergence(logits, dense) == pytest.approx(np.mean(scipy.stats.entropy(other, one, axis=-1)))
    assert labels.agreement(logits, logits + 1) == 100
    assert labels.divergence(logits + 1000, logits) == pytest.approx(0, abs=1e-9)


def test_by_hand():
    logits = np.array([[3, 2, 1], [1, 3, 2], [0, 0, 0]], np.float32)
    assert labels.top_k(logits, np.array([0, 2, 0])) == pytest.approx(200 / 3)
    assert labels.top_k(logits, np.array([0, 2, 2]), 2) == pytest.approx(200 / 3)
    assert labels.top_k(logits, np.array([0, 2, 2]), 9) == 100
    assert labels.agreement(logits, logits[::-1]) == pytest.approx(100)  # the first of equal ones
    assert labels.agreement(logits[:2], logits[1::-1]) == 0


BAD = [
    (lambda: labels.top_k(np.zeros((2, 3)), np.zeros(3, int)), "each row of logits"),
    (lambda: labels.top_k(np.zeros((2, 3)), np.zeros(2)), "whole number"),
    (lambda: labels.top_k(np.zeros((2, 3)), np.array([0, 3])), "3 classes"),
    (lambda: labels.top_k(np.zeros((2, 3)), np.array([0, 1]), 0), "k is 0"),
    (lambda: labels.agreement(np.zeros((2, 3)), np.zeros((2, 4))), "as many of each"),
    (lambda: labels.divergence(np.zeros((0, 3)), np.zeros((0, 3))), "as many of each"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_does_not_agree_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
