"""Sites: the places of any JAX function where a parameter meets an activation in a product, found in its jaxpr."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.trace import search
from lraqvit_jax.trace.jaxprs import leaf_paths, traced
from lraqvit_jax.trace.sites import Sites


def find(apply: Any, params: Any, batch: Any) -> Sites:
    """Finds every place of a function where a parameter meets an activation in a product.

    Args:
        apply: a pure function of `params` and `batch`; its outputs are any tree of arrays.
        params: a tree of arrays.
        batch: an array or a tree of them, with examples along the first axes.

    Raises:
        UserError: a function with side effects or with outputs that differ between calls, a batch or parameters that
            it does not take.
    """
    leaves = leaf_paths(params)
    closed, _ = traced(apply, params, batch)
    again, _ = traced(apply, params, batch)
    if str(closed.jaxpr) != str(again.jaxpr) or not _same(closed.consts, again.consts):
        raise UserError(
            "The function gives another computation each time it is called (a seed or a counter of its own?); make "
            "what changes an argument."
        )
    found = search.of_jaxpr(closed, leaves, examples(batch))
    _found.insert(0, (apply, found))
    del _found[REMEMBERED:]
    return found


_found: list[tuple[Any, Sites]] = []
REMEMBERED = 4
"""Functions whose sites are remembered, so that `rewrite` needs no batch."""


def last_found(apply: Any) -> Sites | None:
    """The sites that `find` last found in a function; None where it did not, or not lately."""
    return next((sites for function, sites in _found if function == apply), None)


def examples(batch: Any) -> int:
    """How many examples a batch has; UserError where its arrays do not agree."""
    arrays = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    counts = {shape[0] for shape in arrays if shape}
    if len(counts) != 1 or not all(arrays) or 0 in counts:
        raise UserError(
            f"batch has arrays of the shapes {', '.join(map(str, arrays)) or 'none'}; give arrays whose first axis is "
            "that of the examples, as many in each."
        )
    return int(counts.pop())


def _same(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(ones) == len(others) and all(
        one is other or np.asarray(one).tobytes() == np.asarray(other).tobytes()
        for one, other in zip(ones, others, strict=True)
    )
