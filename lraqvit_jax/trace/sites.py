"""What `products.find` finds in a function, as records."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.trace.attention import Attention
from lraqvit_jax.trace.hidden import Hidden
from lraqvit_jax.trace.product import Product
from lraqvit_jax.trace.views import View

Trail = tuple[int, ...]
"""Where an equation is: its number, behind those of the equations that it is inside of, and of the layer of a scan."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A place where a leaf, or a part of one, is the kernel of a product.

    Attributes:
        path: of the leaf, with the part of it such as "[3]".
        leaf: path of the leaf, "/" between the names.
        features_in: m.
        features_out: n.
        tokens: rows that an example of the batch gives.
        kind: "embed" where no parameter has touched the input; "head" where the output is that of the function, or no
            other site comes after it, and it gives one token, or nothing that does not depend on it is added to that;
            and "mlp" else.
        bias: path of the leaf, and its part, that is added to the output and to nothing else; "" for none.
        calls: how many products have this kernel.
        reason: why it cannot be compressed; "" where it can.
    """

    path: str
    leaf: str
    features_in: int
    features_out: int
    tokens: int
    kind: str
    bias: str = ""
    calls: int = 1
    reason: str = ""

    @property
    def compressible(self) -> bool:
        return not self.reason

    @property
    def macs(self) -> int:
        """Multiply-accumulates that an example takes."""
        return self.calls * self.tokens * self.features_in * self.features_out

    def info(self) -> LinearInfo:
        """What planning, costs and decompositions know of it."""
        return LinearInfo(self.path, self.features_in, self.features_out, self.tokens, self.kind, bias=bool(self.bias))


class Skipped(NamedTuple):
    """Parameters that are no site, and why.

    Attributes:
        leaves: their paths.
        reason: why.
        macs: that an example takes with them in products; 0 where they are in none.
    """

    leaves: tuple[str, ...]
    reason: str
    macs: int = 0


class Use(NamedTuple):
    """One product of a site."""

    path: str
    product: Product
    view: View
    eqn: Any


@dataclasses.dataclass(frozen=True, repr=False)
class Sites:
    """What `find` found.

    Attributes:
        sites: in the order of the computation.
        skipped: what is no site.
        parameters: of all leaves.
        uses: of the products, by their trail.
        biases: a view of the leaf for each site with a bias.
        attention: blocks of sites that make head products, or would but for what is between.
        hidden: sites whose channels another one reads, each for itself.
    """

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    parameters: int
    uses: Mapping[Trail, Use]
    biases: Mapping[str, View]
    attention: tuple[Attention, ...] = ()
    hidden: tuple[Hidden, ...] = ()

    def __str__(self) -> str:
        """A line for each site, and for what is none."""
        lines = [
            f"{site.path}  {site.features_in} x {site.features_out}, {site.tokens} tokens, {site.kind}"
            + (f"; {site.reason}" if site.reason else "")
            for site in self.sites
        ]
        lines += [f"attention of {block}" for block in self.attention]
        lines += [f"hidden units between {one}" for one in self.hidden]
        lines += [f"{', '.join(one.leaves)}  no site: {one.reason}" for one in self.skipped]
        return "\n".join([*lines, f"{self.covered:.1%} of the multiply-accumulates with parameters can be compressed."])

    def __repr__(self) -> str:
        return f"<lraqvit_jax.Sites: {len(self.sites)} of {self.parameters:,} parameters>"

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, path: str) -> Site:
        return {site.path: site for site in self.sites}[path]

    @property
    def layers(self) -> list[LinearInfo]:
        """Of the sites that can be compressed."""
        return [site.info() for site in self.sites if site.compressible]

    @property
    def covered(self) -> float:
        """Share of the multiply-accumulates of parameters with activations that is in sites which can be compressed."""
        inside = sum(site.macs for site in self.sites if site.compressible)
        outside = sum(site.macs for site in self.sites if not site.compressible)
        total = inside + outside + sum(one.macs for one in self.skipped)
        return inside / total if total else 0.0
