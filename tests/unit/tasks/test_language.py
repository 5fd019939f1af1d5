"""Losses of tokens and perplexity against SciPy and examples by hand."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.tasks import language


@given(st.integers(0, 2**32 - 1))
def test_losses_are_those_of_the_log_softmax(seed):
    draw = np.random.default_rng(seed)
    shape = (*draw.integers(1, 4, draw.integers(0, 3)), 7)
    logits, targets = draw.normal(size=shape, scale=20), draw.integers(0, 7, shape[:-1])
    found = language.negative_log_likelihoods(logits, targets)
    expected = -np.sum(scipy.special.log_softmax(logits, -1) * np.eye(7)[targets], -1)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_allclose(language.negative_log_likelihoods(logits + 1000, targets), expected, atol=1e-9)
    assert language.perplexity(found) >= 1


def test_by_hand():
    # Of a fair die, whatever was thrown, the perplexity is the number of its sides.
    losses = language.negative_log_likelihoods(np.zeros((5, 6), np.float32), np.arange(5))
    assert language.perplexity(losses) == pytest.approx(6)
    assert language.perplexity([np.log(2), np.log(8)]) == pytest.approx(4)
    assert language.perplexity([0.0]) == 1
    assert language.perplexity([1e9]) == np.inf


BAD = [
    (lambda: language.negative_log_likelihoods(np.zeros((2, 3)), np.zeros(3, int)), "each row of logits"),
    (lambda: language.negative_log_likelihoods(np.zeros((2, 3)), np.zeros(2)), "whole number"),
    (lambda: language.negative_log_likelihoods(np.zeros((0, 3)), np.zeros(0, int)), "each row of logits"),
    (lambda: language.negative_log_likelihoods(np.zeros((2, 3)), np.array([0, 3])), "from 0 to 3"),
    (lambda: language.negative_log_likelihoods(np.zeros((2, 3)), np.array([-1, 2])), "from -1 to 2"),
    (lambda: language.perplexity([]), "no token"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_what_has_no_answer_is_said(call, words):
    with pytest.raises(UserError, match=words):
        call()
