"""Which budget is the smallest that keeps within a drop of accuracy, asking as few images as it takes.

A budget is judged by the answers of its model and of the dense one to the same images. It is refused as soon as a part
of them says so, and kept only by all of them.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from lraqvit_jax.base import paired
from lraqvit_jax.base.paired import Drop

FIRST = 100
"""Images that every model is asked; twice as many each time after."""
EARLY = 0.99
"""Confidence with which a part of the images refuses a model: more than that of the end, as it may do so often."""
BIAS = 0.3
"""Share of a drop by which the dense model's probabilities misjudge it, as a standard deviation: of ten thousand images
a ViT lost 1.4 times what they said, of a thousand others 0.7 (docs/howto/smallest.md)."""


class Teacher(NamedTuple):
    """What the dense model says of every image.

    Attributes:
        label: the true class.
        answer: the class of its largest logit.
        shares: probabilities of the classes, calibrated on these labels (`calibrated`).
    """

    label: Int[np.ndarray, " images"]
    answer: Int[np.ndarray, " images"]
    shares: Float[np.ndarray, "images classes"]

    @classmethod
    def of(cls, logits: Float[np.ndarray, "images classes"], label: Int[np.ndarray, " images"]) -> "Teacher":
        return cls(label, np.argmax(logits, -1), calibrated(logits, label))

    def part(self, start: int, end: int) -> "Teacher":
        return Teacher(*(column[start:end] for column in self))


def calibrated(
    logits: Float[np.ndarray, "images classes"], label: Int[np.ndarray, " images"]
) -> Float[np.ndarray, "images classes"]:
    """Probabilities with the temperature of least cross-entropy (Guo et al., ICML 2017, section 4.2)."""
    logits = np.asarray(logits, np.float64)
    rows = np.arange(len(label))

    def cross_entropy(log_temperature: float) -> float:
        return -float(np.mean(special.log_softmax(logits * math.exp(-log_temperature), -1)[rows, label]))

    best = optimize.minimize_scalar(cross_entropy, bounds=(-3, 3), method="bounded").x
    return special.softmax(logits * math.exp(-best), -1)


class Judged(NamedTuple):
    """What images say of a model.

    Attributes:
        drop: of its accuracy, counted, with its interval.
        expected: the same by `expected`, which says it with far less noise where images are few; with its interval.
        keeps: whether it keeps within what is allowed.
        held: the number that is held to it, in points.
    """

    drop: Drop
    expected: Drop
    keeps: bool
    held: float


class Rule(NamedTuple):
    """What has to be within a drop.

    Attributes:
        limit: points of top-1 that may be lost.
        by: "mean", the counted drop; "bound", the upper end of its interval; "expected", the counted drop and the upper
            end of the expected drop's interval: what can be shown on few images, and as sure as "bound" on many.
        confidence: of the intervals.
    """

    limit: float
    by: str
    confidence: float

    def judge(self, teacher: Teacher, answer: Int[np.ndarray, " images"]) -> Judged:
        """What all of these images say."""
        drop, expected = _drops(teacher, answer, self.confidence)
        counted = drop.high if self.by == "bound" else drop.drop
        held = max(counted, expected.high) if self.by == "expected" else counted
        return Judged(drop, expected, bool(held <= self.limit + 1e-9), float(held))

    def refuses(self, teacher: Teacher, answer: Int[np.ndarray, " images"]) -> Judged | None:
        """What a part of the images says where that is enough to refuse the model, whatever the others say."""
        drop, expected = _drops(teacher, answer, EARLY)
        refused = drop.low > self.limit or (self.by == "expected" and expected.low > self.limit)
        return self.judge(teacher, answer)._replace(keeps=False) if refused else None


def _drops(teacher: Teacher, answer: Int[np.ndarray, " images"], confidence: float) -> tuple[Drop, Drop]:
    counted = paired.drop(teacher.answer == teacher.label, answer == teacher.label, confidence)
    return counted, expected(teacher, answer, confidence)


def expected(teacher: Teacher, answer: Int[np.ndarray, " images"], confidence: float) -> Drop:
    """The drop that the dense model's probabilities expect, moved towards the counted one as far as that is the surer.

    Of each image, e is the probability of the dense model's answer less that of the small one's, and c what is counted:
    1 lost, -1 gained. Given the image, c is e and the noise of one label; but the probabilities are wrong together, by
    an unknown share b of the drop, b ~ N(0, BIAS^2). With v the variance of the mean of c - e and p = (BIAS mean(e))^2,

        drop = mean(e) + p / (p + v) mean(c - e),    variance = var(mean(e)) + p v / (p + v):

    mean(e) with a fraction of the noise of counting where images are few, and the counted drop where they are many.

    Args:
        teacher: of the images.
        answer: of the small model.
        confidence: of the interval, both ends together, by Student's t.
    """
    rows, images = np.arange(len(answer)), len(answer)
    by_shares = 100 * (teacher.shares[rows, teacher.answer] - teacher.shares[rows, answer])
    said = paired.mean(by_shares, confidence)
    right, was_right = answer == teacher.label, teacher.answer == teacher.label
    noise = 100.0 * (was_right.astype(int) - right.astype(int)) - by_shares
    prior = (BIAS * said.drop) ** 2
    variance = float(np.var(noise, ddof=1)) / images if images > 1 else math.inf
    if not prior or math.isinf(variance):
        return said
    surer = prior / (prior + variance)
    middle = said.drop + surer * float(np.mean(noise))
    half = math.hypot((said.high - said.low) / 2, paired.quantile(images, confidence) * math.sqrt(surer * variance))
    return Drop(middle, middle - half, middle + half, images)


class Answers(Protocol):
    """Gives the answers of one model to the images from `start` to `end`."""

    def __call__(self, start: int, end: int) -> Int[np.ndarray, " part"]: ...


def judge(answers: Answers, teacher: Teacher, rule: Rule) -> Judged:
    """Asks a model about parts of the images, each as large as all before it, until the rule refuses it or all say
    what they think.

    Args:
        answers: of the model.
        teacher: of all images.
        rule: to judge by.
    """
    images, seen = len(teacher.label), np.empty(0, np.int32)
    for start, end in itertools.pairwise(parts(images)):
        seen = np.concatenate([seen, answers(start, end)])
        if end < images and (judged := rule.refuses(teacher.part(0, end), seen)):
            return judged
    return rule.judge(teacher, seen)


def parts(images: int) -> Iterator[int]:
    """0, FIRST, 2 FIRST, 4 FIRST, ..., images."""
    yield 0
    end = FIRST
    while end < images:
        yield end
        end *= 2
    yield images


def smallest(
    keeps: Callable[[float], tuple[bool, float]],
    low: float,
    high: float,
    limit: float,
    resolution: float,
    first: float = 0.7,
    attempts: int = 100,
) -> float | None:
    """The smallest budget that keeps within the limit, to the resolution; None where none was found that does.

    Drops grow about exponentially as budgets fall: the next budget is where a line through the logarithms of the drops
    at both ends of what is still open meets the limit, but never near an end, so that it takes hardly more than
    bisection would.

    Args:
        keeps: whether a budget keeps within it, and its drop.
        low: no budget below is tried.
        high: the largest.
        limit: of the drop.
        resolution: budgets are multiples of it.
        first: where to begin, a share of the way from `low` to `high`.
        attempts: budgets to ask about, at most.
    """
    bottom, top = math.ceil(low / resolution - 1e-9), math.floor(high / resolution + 1e-9)
    refused, kept, drops = bottom - 1, top + 1, dict[int, float]()
    step = round(bottom + first * (top - bottom))
    for _ in range(attempts):
        if kept - refused <= 1:
            break
        keeps_within, drops[step] = keeps(round(step * resolution, 6))
        refused, kept = (refused, step) if keeps_within else (step, kept)
        step = _between(refused, kept, limit, drops)
    return round(kept * resolution, 6) if kept <= top else None


FLOOR = 0.05
"""Points below which a drop says nothing of the next."""


def _between(refused: int, kept: int, limit: float, drops: Mapping[int, float]) -> int:
    """A step above `refused` and below `kept`, at least a quarter of the way from either."""
    share = 0.5
    if refused in drops and kept in drops:
        below, above, wanted = (math.log(max(value, FLOOR)) for value in (drops[refused], drops[kept], limit))
        share = (wanted - above) / (below - above) if below > above else share
    margin = max(1, round((kept - refused) / 4))
    return min(max(round(kept - share * (kept - refused)), refused + margin), max(refused + 1, kept - margin))


def split(images: int, held_out: float, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """The images that a search sees, in the order in which it asks, and those that only the final numbers see."""
    order = np.random.default_rng(seed).permutation(images)
    seen = images - int(held_out * images)
    return order[:seen], np.sort(order[seen:])
