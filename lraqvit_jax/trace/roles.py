"""What the output of a site becomes on its way, as far as attention and hidden units go."""

import dataclasses

import numpy as np
from jaxtyping import Int

from lraqvit_jax.trace.channels import Index

Heads = Int[np.ndarray, "heads k"]
"""By head: channels of a site's output, or rows of a projection's kernel."""


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """What the outputs of sites became.

    Attributes:
        sites: all of them, channel by channel of one index.
        index: the channel of each entry, the first of several that were mixed; None where its layout was not followed.
        changed: the primitives between the sites and here that did more than move channels.
        apart: whether an entry depends on its own channel alone.
    """

    sites: frozenset[str]
    index: Index | None
    changed: frozenset[str] = frozenset()
    apart: bool = True

    @property
    def site(self) -> str:
        """Where there is one alone."""
        return next(iter(self.sites)) if len(self.sites) == 1 else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a product of query and key has become.

    Attributes:
        query: its operand.
        key: likewise.
        head_dim: channels that were summed over.
        query_channels: of each head, None where not followed.
        key_channels: likewise.
        index: the head of each entry.
        keys: the place of each entry's key.
        soft: whether it went through an exponential.
        normalized: whether these were then divided by their sum over the keys, and nothing came after.
        changed: why it is no score product of query and key alone.
    """

    query: Channels
    key: Channels
    head_dim: int
    query_channels: Heads | None
    key_channels: Heads | None
    index: Index | None
    keys: Index | None
    soft: bool = False
    normalized: bool = False
    changed: frozenset[str] = frozenset()

    @property
    def sites(self) -> frozenset[str]:
        return frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Total:
    """The sum of scores over their keys."""

    scores: Scores
    index: Index | None = None
    changed: frozenset[str] = frozenset()

    @property
    def sites(self) -> frozenset[str]:
        return frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Mixed:
    """Values, added up by their scores.

    Attributes:
        scores: of them.
        value: the operand.
        channels: of the value, by head.
        index: which of `channels`, flattened, each entry is.
        changed: the primitives since, as of `Channels`.
    """

    scores: Scores
    value: Channels
    channels: Heads | None
    index: Index | None
    changed: frozenset[str] = frozenset()

    @property
    def sites(self) -> frozenset[str]:
        return self.value.sites


Role = Channels | Scores | Total | Mixed
