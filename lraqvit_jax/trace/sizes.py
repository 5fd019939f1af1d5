"""Which places a function has, and how large each is under a budget."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from lraqvit_jax.lowrank import spectra
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan.budget import cheapest, too_small
from lraqvit_jax.trace import parts, rewrite
from lraqvit_jax.trace.attention import Attention
from lraqvit_jax.trace.parts import Part
from lraqvit_jax.trace.places import Biases, Kernel, Layer, Mlp, Place, Scores, Sizes, Values, unmeasured
from lraqvit_jax.trace.rewrite import Rewritten
from lraqvit_jax.trace.sites import Sites

MEASURED = (2, 48)
"""Examples that sizes are measured on: the more of a small function, the fewer of a large one."""
MACS = 1.5e11
"""That a measurement takes, about, between these bounds: there are hundreds of them."""
Channels = Int[np.ndarray, "..."]


def places(sites: Sites, layers: Mapping[str, Layer]) -> list[Place]:
    """What can be made smaller by itself, in the order of the computation; together they have all channels of all
    these sites.

    Args:
        sites: of the function.
        layers: by path: those that may be changed.
    """
    heads = [
        (kind, block)
        for block in sites.attention
        for kind, reason in ((Scores, block.score_reason), (Values, block.value_reason))
        if not reason and layers.keys() >= {path for path, _, _ in _channels(kind, block)}
    ]
    named: dict[str, dict[str, Channels]] = {}
    for kind, block in heads:
        for path, name, channels in _channels(kind, block):
            named.setdefault(path, {})[name] = np.arange(len(layers[path].bias)) if channels is None else channels
    rest = {
        path: np.setdiff1d(
            np.arange(len(layers[path].bias)), np.concatenate([channels.reshape(-1) for channels in of_site.values()])
        )
        for path, of_site in named.items()
    }

    def name_in(path: str, name: str) -> str:
        """The name of some channels; none where they are all of the site."""
        return name if len(named[path]) > 1 or len(rest[path]) else ""

    made: list[tuple[str, Callable[[], Place]]] = []
    for kind, block in heads:
        first, second = (name_in(path, name) for path, name, _ in _channels(kind, block))
        made.append((block.output, functools.partial(kind, block, layers, (first, second))))
    for path, channels in rest.items():
        if len(channels):
            made.append((path, functools.partial(Kernel, layers[path], "rest", channels)))
    taken = {*named}
    for found in sites.hidden:
        paths = {*found.producers, found.reader}
        if layers.keys() >= paths and not paths & taken:
            made.append((found.reader, functools.partial(Mlp, found, layers)))
            taken |= paths
    made += [(path, functools.partial(Kernel, layer)) for path, layer in layers.items() if path not in taken]
    order = {site.path: number for number, site in enumerate(sites)}
    made.sort(key=lambda one: order[one[0]])
    return spectra.each(lambda one: one[1](), made, "places")


def _others(layer: Layer, taken: Iterable[Channels]) -> Channels:
    """The channels of a site that are in none of these."""
    return np.setdiff1d(np.arange(len(layer.bias)), np.concatenate([channels.reshape(-1) for channels in taken]))


def _channels(kind: type[Scores | Values], block: Attention) -> list[tuple[str, str, Channels | None]]:
    """The sites of a product, the name of what it has of each, and the channels; None are all."""
    if kind is Scores:
        return [(block.query, "query", block.query_channels), (block.key, "key", block.key_channels)]
    return [(block.value, "value", block.value_channels), (block.output, "", None)]


def choose(
    of_function: Sequence[Place], budget: float, changes: "Changes", rounds: int, multiple: int
) -> dict[str, Sizes]:
    """The sizes of every place that change the outputs least, by its name.

    Args:
        of_function: the places.
        budget: share of their kernels' parameters.
        changes: measures.
        rounds: of measuring.
        multiple: of which sizes are.

    Raises:
        UserError: the budget is too small.
    """
    by_name, scales = {place.name: place for place in of_function}, unmeasured(of_function)
    limit = budget * changes.parameters

    def solve() -> dict[str, Sizes]:
        choices = {name: place.choices(scales, multiple) for name, place in by_name.items()}
        try:
            chosen = cheapest(choices, limit)
        except ValueError as error:
            raise too_small(budget, multiple) from error
        return {name: {**by_name[name].sizes, **choice.size} for name, choice in chosen.items()}

    def alone(name: str, part: str, sizes: Sizes) -> tuple[Place, Sizes]:
        place = by_name[name]
        return place, {**place.sizes, part: sizes[part]}

    def predicted(name: str, part: str, sizes: Sizes) -> float:
        place, only = alone(name, part, sizes)
        return place.loss(part, only)

    def measure(name: str, part: str, sizes: Sizes) -> float:
        place, only = alone(name, part, sizes)
        return changes(*place.made(only))

    return dict(blocks.settle(solve, predicted, measure, scales, rounds))


class Changes:
    """How much the outputs of a function change on a few examples when some sites do."""

    def __init__(
        self,
        function: Rewritten,
        params: Mapping[str, Any],
        sites: Sites,
        layers: Mapping[str, Layer],
        batches: Iterable[Any],
        keep: str,
    ) -> None:
        """Runs the function once.

        Args:
            function: dense.
            params: of it.
            sites: of it.
            layers: that may change, by path.
            batches: of the examples; see `MEASURED`.
            keep: see `trace.moments`.
        """
        self._function, params = rewrite.spelled_out(function, params, sites)
        self._sites, self._layers, self._keep = sites, layers, keep
        self._params = jax.tree.map(jnp.asarray, params)
        self._run = jax.jit(self._function)
        self._change = jax.jit(lambda params, batch, dense: squared_change(self._function(params, batch), dense, keep))
        wanted = np.clip(MACS / max(1, sum(site.macs for site in sites)), *MEASURED)
        self._batches = list[tuple[Any, Any]]()
        self.examples = 0
        for batch in batches:
            if self.examples < wanted:
                self._batches.append((batch, self._run(self._params, batch)))
                self.examples += rewrite.products.examples(batch)
        self.parameters = sum(layer.kernel.size for layer in layers.values())

    def __call__(self, made: Sequence[Part], biases: Biases) -> float:
        """Mean over the examples of the square of the outputs' change.

        Args:
            made: of the sites that change.
            biases: likewise.
        """
        by_site: dict[str, list[Part]] = {}
        for part in made:
            by_site.setdefault(part.site, []).append(part)
        kernels = {path: parts.densified(of_site, self._layers[path].kernel) for path, of_site in by_site.items()}
        changed = rewrite.replaced(self._params, kernels, biases, self._sites)
        return sum(float(self._change(changed, batch, dense)) for batch, dense in self._batches) / self.examples


def squared_change(outputs: Any, dense: Any, keep: str) -> jax.Array:
    """Sum over examples of the square of what changed, of logits about its mean."""
    total = jnp.zeros(())
    for one, other in zip(jax.tree.leaves(outputs), jax.tree.leaves(dense), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            moved = one.astype(jnp.float32) - other.astype(jnp.float32)
            moved -= jnp.mean(moved, -1, keepdims=True) if keep == "logits" and moved.ndim else 0
            total += jnp.sum(jnp.square(moved))
    return total
