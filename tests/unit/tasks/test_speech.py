"""Word error rates against a recursion and examples by hand."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.tasks import speech

words = st.lists(st.sampled_from("abc"), max_size=7)


def recursive(one, other):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        changed = distance(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(changed, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(one), len(other))


@given(words, words, words)
def test_edits_are_the_fewest_and_a_distance(one, other, third):
    assert speech.edits(one, other) == recursive(one, other) == speech.edits(other, one)
    assert (speech.edits(one, other) == 0) == (one == other)
    assert speech.edits(one, third) <= speech.edits(one, other) + speech.edits(other, third)


def test_text_is_compared_as_it_is_said():
    assert speech.normalize("  Don't -- STOP;\tat No. 7!\n") == "don't stop at no 7"
    assert speech.normalize(speech.normalize("Ça va?")) == "a va"


def test_by_hand():
    # One word replaced, one left out, one put in, of four and two words: each utterance counts by its words.
    references, hypotheses = ["the cat sat down", "oh no"], ["The cat sits.", "oh, no, no!"]
    assert speech.word_error_rate(references, hypotheses) == pytest.approx(100 * 3 / 6)
    assert speech.word_error_rate(["a"], ["b c d"]) == 300
    assert speech.word_error_rate(["", "a"], ["", "a"]) == 0


BAD = [
    (lambda: speech.word_error_rate(["a"], []), "1 references and 0 hypotheses"),
    (lambda: speech.word_error_rate([], []), "no words"),
    (lambda: speech.word_error_rate(["..."], ["a"]), "no words"),
    (lambda: speech.word_error_rate("a", "a"), "two lists"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_what_has_no_answer_is_said(call, words):
    with pytest.raises(UserError, match=words):
        call()
