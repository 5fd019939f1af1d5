"""The search for the smallest budget: against looking at all of them; and what it is judged by, against simulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from lraqvit_jax.base import paired
from lraqvit_jax.tasks import search
from lraqvit_jax.tasks.search import Rule, Teacher


def found(threshold, low, high, resolution, steepness=8.0, limit=1.0):
    """The budget, and which were asked for, where drops grow exponentially and reach the limit at the threshold."""
    asked = []

    def keeps(budget):
        asked.append(budget)
        drop = limit * np.exp(steepness * (threshold - budget))
        return drop <= limit, drop

    return search.smallest(keeps, low, high, limit, resolution), asked


@given(
    threshold=st.floats(0.0, 1.3),
    low=st.floats(0.05, 0.5),
    high=st.floats(0.6, 1.0),
    resolution=st.sampled_from([0.01, 0.02, 0.05, 0.1]),
    steepness=st.floats(0.5, 60),
)
def test_it_is_the_smallest_of_all_budgets_and_few_are_asked(threshold, low, high, resolution, steepness):
    budget, asked = found(threshold, low, high, resolution, steepness)
    steps = np.arange(np.ceil(low / resolution - 1e-9), np.floor(high / resolution + 1e-9) + 1)
    budgets = [round(step * resolution, 6) for step in steps]
    good = [one for one in budgets if np.exp(steepness * (threshold - one)) <= 1]
    assert budget == (min(good) if good else None)
    assert len(asked) == len(set(asked))
    assert len(asked) <= 3 + 2.5 * np.log2(len(budgets))


def test_a_smooth_drop_takes_fewer_questions_than_halving():
    counts = [len(found(threshold, 0.1, 1.0, 0.01)[1]) for threshold in np.linspace(0.15, 0.95, 41)]
    assert np.mean(counts) < np.log2(91)


def test_attempts_are_kept_to():
    kept, asked = [], []
    for attempts in range(1, 6):
        before = len(asked)

        def keeps(budget):
            asked.append(budget)
            return budget > 0.33, 1.0

        kept.append(search.smallest(keeps, 0.1, 0.9, 1.0, 0.01, attempts=attempts))
        assert len(asked) - before <= attempts
    assert kept == sorted(kept, reverse=True)
    assert min(kept) > 0.33


def images(rng, count=400, classes=10, sharpness=2.0):
    """Logits whose softmax is the truth, and labels drawn from it."""
    logits = sharpness * rng.normal(size=(count, classes))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return logits, shares, np.array([rng.choice(classes, p=row) for row in shares])


def test_probabilities_are_calibrated(rng):
    """A model three times too sure is brought back to what the labels were drawn from."""
    logits, shares, label = images(rng, 4000)
    assert np.abs(search.calibrated(3 * logits, label) - shares).max() < 0.1
    assert np.abs(search.calibrated(logits / 4, label) - shares).max() < 0.1


def test_the_expected_drop_is_the_drop_with_far_less_noise(rng):
    counted, expected = [], []
    for _ in range(300):
        logits, shares, label = images(rng)
        answer = np.argmax(logits + 0.3 * rng.normal(size=logits.shape), -1)
        teacher = Teacher(label, np.argmax(logits, -1), shares)
        judged = Rule(1.0, "mean", 0.95).judge(teacher, answer)
        counted.append(judged.drop.drop)
        expected.append(judged.expected)
    truth = np.mean(counted)
    assert np.mean([one.drop for one in expected]) == pytest.approx(truth, abs=4 * np.std(counted) / np.sqrt(300))
    assert np.std([one.drop for one in expected]) < 0.4 * np.std(counted)
    assert np.mean([one.low <= truth <= one.high for one in expected]) > 0.85


@pytest.mark.parametrize("count", [400, 40_000], ids=["few", "many"])
def test_the_expected_drop_heeds_wrong_probabilities_as_far_as_the_images_show_them(count, rng):
    """Of probabilities that say four fifths of every drop, few images leave their word, many nearly the truth."""
    found = []
    for _ in range(60):
        logits = 2.0 * rng.normal(size=(count, 10))
        label = np.argmax(logits + rng.gumbel(size=logits.shape), -1)  # drawn from the softmax
        dense, answer = np.argmax(logits, -1), np.argmax(logits + 0.3 * rng.normal(size=logits.shape), -1)
        shares = special.softmax(logits, -1)
        truth = 100 * np.mean(shares[np.arange(count), dense] - shares[np.arange(count), answer])
        expected = search.expected(Teacher(label, dense, 0.8 * shares + 0.02), answer, 0.95)
        found.append((expected.drop / truth, expected.low <= truth <= expected.high))
    ratios, inside = np.array(found).T
    assert np.mean(ratios) == pytest.approx(0.8 if count == 400 else 0.95, abs=0.04)
    assert np.mean(inside) > 0.85


@pytest.fixture
def teacher(rng):
    logits, _, label = images(rng, 1000, sharpness=6.0)
    return Teacher.of(logits, label)


def spoilt(teacher, share, rng):
    """Answers of which that share is another class."""
    wrong = rng.random(len(teacher.label)) < share
    return np.where(wrong, (teacher.answer + 1) % 10, teacher.answer)


def asked(answer):
    """How far the images were asked."""
    ends = []

    def answers(start, end):
        ends.append((start, end))
        return answer[start:end]

    return answers, ends


def test_a_bad_model_is_refused_by_few_images_and_a_good_one_kept_by_all(teacher, rng):
    rule = Rule(1.0, "mean", 0.95)
    answers, ends = asked(spoilt(teacher, 0.4, rng))
    judged = search.judge(answers, teacher, rule)
    assert not judged.keeps
    assert ends == [(0, 100)]
    assert judged.drop.images == 100
    answers, ends = asked(teacher.answer)
    judged = search.judge(answers, teacher, rule)
    assert judged.keeps
    assert ends == [(0, 100), (100, 200), (200, 400), (400, 800), (800, 1000)]
    assert judged.drop.images == 1000
    assert judged.expected.drop == 0


def test_what_has_to_keep_within_the_limit(teacher, rng):
    answer = spoilt(teacher, 0.03, rng)
    drop = paired.drop(teacher.answer == teacher.label, answer == teacher.label)
    assert Rule(drop.drop, "mean", 0.95).judge(teacher, answer).keeps
    assert not Rule(drop.drop - 0.01, "mean", 0.95).judge(teacher, answer).keeps
    assert Rule(drop.high, "bound", 0.95).judge(teacher, answer).keeps
    assert not Rule(drop.high - 0.01, "bound", 0.95).judge(teacher, answer).keeps
    expected = Rule(1.0, "expected", 0.95).judge(teacher, answer).expected
    larger = max(drop.drop, expected.high)
    assert Rule(larger, "expected", 0.95).judge(teacher, answer).keeps
    assert not Rule(larger - 0.01, "expected", 0.95).judge(teacher, answer).keeps


def test_good_models_are_seldom_refused_early(rng):
    """Of models that lose what is allowed, a part of the images refuses few: less than their number of looks times
    what its confidence leaves."""
    refused = 0
    for _ in range(200):
        label = np.zeros(800, np.int32)
        right = rng.random(800) < 0.9
        gained, lost = (~right) & (rng.random(800) < 0.1), right & (rng.random(800) < 0.0222)
        dense, small = np.where(right, 0, 1), np.where((right & ~lost) | gained, 0, 1)
        shares = np.stack([right, ~right], -1).astype(float)
        answers, ends = asked(small)
        search.judge(answers, Teacher(label, dense, shares), Rule(1.0, "mean", 0.95))
        refused += ends[-1][1] < 800
    assert refused <= 0.05 * 200


def test_the_images_are_split_once():
    seen, held_out = search.split(1001, 0.5, 7)
    assert sorted([*seen, *held_out]) == list(range(1001))
    assert len(held_out) == 500
    again = search.split(1001, 0.5, 7)
    assert np.array_equal(seen, again[0])
    assert not np.array_equal(seen, search.split(1001, 0.5, 8)[0])
    assert len(search.split(10, 0.0, 0)[1]) == 0
