"""What speech recognition is measured by: the word error rate."""

import re
from collections.abc import Sequence

from lraqvit_jax.base.errors import UserError


def normalize(text: str) -> str:
    """Lower case; every character but a-z, 0-9 and the apostrophe is a space; one space between words, none around.

    It leaves numbers and spellings as they are, unlike Whisper's own normalizer.
    """
    return " ".join(re.sub(r"[^a-z0-9']", " ", text.lower()).split())


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Words to put in, take out or replace, the fewest, to make one list of the other (Levenshtein 1966)."""
    row = list(range(len(hypothesis) + 1))
    for number, word in enumerate(reference, 1):
        before, row = row, [number]
        for place, other in enumerate(hypothesis):
            row.append(min(before[place] + (word != other), before[place + 1] + 1, row[place] + 1))
    return row[-1]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Edits in percent of the words of the references, both summed over all utterances after `normalize`.

    It is above 100 where more words are wrong than there are.

    Raises:
        UserError: lists of different lengths, or references without a word.
    """
    if isinstance(references, str) or isinstance(hypotheses, str) or len(references) != len(hypotheses):
        raise UserError(
            f"There are {len(references)} references and {len(hypotheses)} hypotheses; give two lists of one length."
        )
    pairs = [
        (normalize(one).split(), normalize(other).split()) for one, other in zip(references, hypotheses, strict=True)
    ]
    words = sum(len(reference) for reference, _ in pairs)
    if not words:
        raise UserError("The references have no words; give what was said.")
    return 100 * sum(edits(*pair) for pair in pairs) / words
