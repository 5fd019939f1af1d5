"""Sets each known field of a card to each odd value, and compares the logits of a photograph with timm's or
transformers' own.

    python -m tests.slow.cards --seconds 3000

Who reads the card right gives the source's logits; who cannot, UserError. A case of which the source itself can make
nothing has no right answer: it must only raise nothing else. What differs silently, or is a traceback, is printed, and
the exit code is 1. It needs torch, timm and transformers.
"""

import argparse
import collections
import functools
import itertools
import json
import pathlib
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.weights import cards

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 6, 8, 16, 32, 48, 224, 0.5, 0.9, 1e-5, 1.5, 10**30, float("nan"), "", "x",
    "avg", "token", "bilinear", "squash", "quick_gelu", "regression", [], [1, 2], [0.4, 0.5, 0.6], [3, 32, 64],
    [16, 16], {}, {"height": 16, "width": 32}, {"shortest_edge": 16}, {"0": "a"}, ["a", "b", "c"],
]  # fmt: skip
TOLERANCE = 1e-3


class Case(NamedTuple):
    """A field of a kind of card set to a value."""

    kind: str
    field: str
    value: Any


def cases() -> list[Case]:
    """All of them, and for each kind a field that nobody knows."""
    fields = {kind: sorted(table) for kind, table in cards.KINDS.items()}
    return [
        Case(kind, field, value)
        for kind, names in fields.items()
        for field, value in itertools.product([*names, "nobody_knows_it"], ODD)
    ]


def answer(run: Callable[[], Any]) -> tuple[str, Any]:
    """What a reader says: "logits", "refused" or, of another exception, "traceback"."""
    try:
        return "logits", run()
    except UserError as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"


def ours(source: str, photo: Any) -> np.ndarray:
    model, params, preprocess = weights.load(source)
    return np.asarray(model.apply({"params": params}, preprocess(photo)[None]))[0]


def run(where: pathlib.Path, chosen: list[Case]) -> Iterator[tuple[Case, str]]:
    """What came of each case: "right", "refused", "unknown" where the source fails, "different" or "traceback"."""
    from tests.slow import cards_reference as reference

    photo = reference.photo()
    for case in chosen:
        folder = where / case.kind.replace(".", "_")
        write, theirs = reference.PARTS[case.kind.partition(".")[0]]
        source = write(folder, case)
        said, got = answer(functools.partial(ours, source, photo))
        if said != "logits":
            yield case, said if said == "refused" else f"traceback {got}"
            continue
        known, want = answer(functools.partial(theirs, folder, photo))
        if known != "logits":
            yield case, "unknown"
        else:
            error = np.abs(got - want).max() / want.std() if got.shape == want.shape else np.inf
            yield case, "right" if error < TOLERANCE else f"different by {error:.2g}"


def failures(chosen: list[Case]) -> tuple[collections.Counter, list[str]]:
    """How often each answer came, and what failed."""
    counts, failed = collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case, said in run(pathlib.Path(folder), chosen):
            counts[said.partition(" ")[0]] += 1
            if said.startswith(("different", "traceback")):
                failed.append(f"{case.kind} {case.field} = {json.dumps(case.value)}: {said}")
    return counts, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=0, help="how many, drawn at random; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = cases()
    if options.cases:
        chosen = random.Random(options.seed).sample(chosen, options.cases)
    counts, failed = failures(chosen)
    print("\n".join(failed))
    print(dict(counts))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
