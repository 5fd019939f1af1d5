"""A sample of `python -m tests.slow.cards`: odd values in cards, against timm's and transformers' own logits."""

import random

import pytest

pytest.importorskip("tests.parity.pytorch", reason="needs torch, timm and transformers")
from tests.slow import cards

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]


def test_no_odd_value_is_silently_different():
    counts, failed = cards.failures(random.Random(3).sample(cards.cases(), 80))
    assert failed == []
    assert counts["right"] > 10
    assert counts["refused"] > 10


def test_a_wrong_reading_is_seen(monkeypatch):
    monkeypatch.setitem(cards.cards.PROCESSOR, "do_normalize", cards.cards.Fate("irrelevant", "a mistake"))
    monkeypatch.setattr("lraqvit_jax.weights.processors._flag", lambda fields, name, default: default)
    _, failed = cards.failures([cards.Case("huggingface.processor", "do_normalize", False)])
    assert "different" in failed[0]
