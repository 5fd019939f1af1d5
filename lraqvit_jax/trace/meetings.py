"""What of the attention blocks and hidden units that a walk met can be made smaller: all of their readers are known."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lraqvit_jax.trace.attention import Attention
from lraqvit_jax.trace.hidden import Hidden
from lraqvit_jax.trace.roles import Channels
from lraqvit_jax.trace.sites import Site, Sites

Consumer = tuple[str, str]
"""Who reads the outputs of a site: ("site", its path), ("output", path of a projection), ("scores" or "values", the
primitive), or ("other", the primitive)."""
Consumers = Mapping[str, set[Consumer]]


class Read(NamedTuple):
    """What a site reads of others, once; the channel for each row of its kernel, None where not known."""

    role: Channels
    rows: Int[np.ndarray, " m"] | None


def attention(sites: Sites, blocks: Sequence[Attention], consumers: Consumers) -> tuple[Attention, ...]:
    """The blocks, with the reasons why some make no products."""
    known = {site.path: site for site in sites}
    queries = collections.Counter(path for block in blocks for path in {block.query, block.key})
    values = collections.Counter(path for block in blocks for path in {block.value, block.output})
    judged = []
    for block in blocks:
        score, value = block.score_reason, block.value_reason
        if not score:
            score = _stuck([known[block.query], known[block.key]], queries, consumers)
        if not value:
            value = _stuck([known[block.value], known[block.output]], values, consumers, block.output)
        judged.append(dataclasses.replace(block, score_reason=score, value_reason=value))
    return tuple(judged)


def _stuck(sites: Sequence[Site], blocks: Mapping[str, int], consumers: Consumers, output: str = "") -> str:
    """Why the kernels of sites cannot be changed together; "" where they can.

    Args:
        sites: of a product.
        blocks: how many blocks have each.
        consumers: of all sites.
        output: path of the projection, where it is one of them.
    """
    for site in sites:
        if site.reason:
            return f"{site.path} {site.reason}"
        if blocks[site.path] > 1:
            return f"{site.path} is of other heads too"
        if site.path == output:
            continue
        for kind, by in sorted(consumers[site.path]):
            if kind in ("site", "other"):
                return f"{site.path} is also read by {by}"
            if kind == "output" and output and by != output:
                return f"{site.path} is also projected by {by}"
    return ""


def hidden(sites: Sites, reads: Mapping[str, Sequence[Read]], consumers: Consumers) -> tuple[Hidden, ...]:
    """The MLPs: every reader of their hidden units is one site."""
    known = {site.path: site for site in sites}
    found = []
    for path, met in reads.items():
        role, rows = met[0]
        made = [known[producer] for producer in sorted(role.sites)]
        free = all(site.compressible and consumers[site.path] == {("site", path)} for site in made)
        if rows is None or not free or not known[path].compressible:
            continue
        if any(read.role.sites != role.sites or not read.role.apart or _differ(read.rows, rows) for read in met):
            continue
        calls = {site.calls for site in (*made, known[path])}
        wide = {site.features_out for site in made} | {known[path].features_in}
        if len(calls) == len(wide) == 1 and np.array_equal(np.sort(rows), np.arange(len(rows))):
            found.append(Hidden(tuple(site.path for site in made), path, np.argsort(rows)))
    return tuple(found)


def _differ(one: Int[np.ndarray, " m"] | None, other: Int[np.ndarray, " m"]) -> bool:
    return one is None or not np.array_equal(one, other)
