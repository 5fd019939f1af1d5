"""A transformer block as what its function depends on: two products a head, hidden units, and the kernels between.

Five sizes say how much of a block is left: channels of the score and of the value product of each head (`heads`),
hidden units (`hidden`), and ranks of fc1 and fc2 (`weighted_kfac`). What each loses at every size, all else left as it
is, has a closed form.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lraqvit_jax.base import trees
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank import heads, hidden, kfac, spectra, weighted_kfac
from lraqvit_jax.lowrank.bias import bias_shift
from lraqvit_jax.lowrank.pairs import Layer, pair
from lraqvit_jax.plan.blocks import Block, Curves, Sizes, full
from lraqvit_jax.plan.budget import Curve, loss_curve

LAYERS = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
"""Of a dense block, by their paths in it."""


class Mlp(NamedTuple):
    """fc1 and fc2 with some of their hidden units, and the moments of what they read."""

    fc1: Layer
    fc2: Layer
    moments1: Moments
    moments2: Moments

    def curves(self) -> tuple[Curve, Curve]:
        """What fc1 and fc2 lose at every rank from 0 to full."""
        first = weighted_kfac.losses(self.fc1["kernel"], self.moments1)
        second = weighted_kfac.losses(self.fc2["kernel"], self.moments2)
        return loss_curve(first), loss_curve(second)


@dataclasses.dataclass(frozen=True)
class Attention:
    """The attention of a dense block, and how its products are cut."""

    kernels: heads.Attention
    scores: list[heads.Cut]
    values: list[heads.Cut]
    mean: Float[np.ndarray, " hk"]

    @classmethod
    def of(cls, params: Mapping[str, Any], moments: Mapping[str, Moments], count: int) -> "Attention":
        """Solves it.

        Args:
            params: of the block, float, by the paths of LAYERS.
            moments: of what each of them reads, with gradients.
            count: of heads.
        """
        kernels = heads.Attention.of(params["attn/qkv"], params["attn/proj"], count)
        scores, values = kernels.scores(moments["attn/qkv"]), kernels.values(moments["attn/proj"])
        return cls(kernels, scores, values, moments["attn/proj"].weighted().mean)

    def curves(self) -> tuple[Curve, Curve]:
        """What the score and the value products lose with 0, 1, ... all channels a head left."""
        scores, values = ([cut.losses() for cut in cuts] for cuts in (self.scores, self.values))
        return np.sum(scores, axis=0), np.sum(values, axis=0)

    def layers(self, score: int, value: int) -> dict[str, Layer]:
        """Query, key, value and proj with so many channels a head, by their paths in the block, float64."""
        factors = ([cut.factors(score) for cut in self.scores], [cut.factors(value) for cut in self.values])
        made = self.kernels.smaller(*factors, self.mean)
        return {f"attn/{name}": layer for name, layer in made.items()}


@dataclasses.dataclass(frozen=True)
class Units:
    """The hidden units of a dense block, in the order in which they go."""

    whole: Mlp
    removal: hidden.Removal

    @classmethod
    def of(cls, params: Mapping[str, Any], moments: Mapping[str, Moments]) -> "Units":
        """Solves it; arguments as of `Attention.of`."""
        fc1, fc2 = (
            {name: np.asarray(value, np.float64) for name, value in params[path].items()} for path in LAYERS[2:]
        )
        whole = Mlp(fc1, fc2, moments["mlp/fc1"], moments["mlp/fc2"])
        root = kfac.output_root(whole.moments2)
        return cls(whole, hidden.removal(fc2["kernel"], whole.moments2.weighted(), root))

    @functools.cached_property
    def spectra(self) -> dict[str, kfac.Spectrum]:
        """Of fc1 and fc2 with all units."""
        fc1, fc2, moments1, moments2 = self.whole
        return {
            "fc1": weighted_kfac.spectrum(fc1["kernel"], moments1),
            "fc2": weighted_kfac.spectrum(fc2["kernel"], moments2),
        }

    def pair(self, part: str, rank: int) -> Layer:
        """fc1 or fc2 with all units as a pair by `weighted_kfac`."""
        layer, seen = getattr(self.whole, part), self.whole.moments1 if part == "fc1" else self.whole.moments2
        moments = seen.weighted()
        made = self.spectra[part].cut(rank)
        return {"u": made.u, "v": made.v, "bias": layer["bias"] + bias_shift(layer["kernel"], made, moments)}

    @property
    def count(self) -> int:
        return len(self.removal.order)

    def mlp(self, width: int) -> Mlp:
        """fc1 and fc2 with `width` units left, the others made good."""
        whole, kept = self.whole, self.removal.kept(width)
        if width >= self.count:
            return whole
        kernel, shift = hidden.compensated(whole.fc2["kernel"], whole.moments2.weighted(), kept)
        assert whole.moments1.gradient is not None
        # Of SwiGLU, the gate of a unit and its value go together.
        outputs = np.concatenate([kept + first for first in range(0, len(whole.fc1["bias"]), self.count)])
        moments1 = whole.moments1._replace(gradient=whole.moments1.gradient[np.ix_(outputs, outputs)])
        return Mlp(
            {"kernel": whole.fc1["kernel"][:, outputs], "bias": whole.fc1["bias"][outputs]},
            {"kernel": kernel, "bias": whole.fc2["bias"] + shift},
            moments1,
            whole.moments2.narrowed(kept),
        )


WIDTHS = (1.0, 0.75, 0.5, 0.25)
"""Shares of the hidden units at which the losses of ranks are computed; between them they are interpolated."""


class Solved:
    """A block's closed forms.

    Attributes:
        block: what may be changed of it.
        attention: None where that stays.
        units: None where the MLP stays.
    """

    def __init__(self, block: Block, params: Any, moments: Mapping[str, Moments]) -> None:
        """Solves the block.

        Args:
            block: what may be changed.
            params: of the float model, on the host.
            moments: of its layers by path, with gradients.
        """
        self.block = block
        self._dense = {path: trees.get(params, f"{block.path}/{path}") for path in LAYERS}
        seen = {path: moments[f"{block.path}/{path}"] for path in LAYERS if f"{block.path}/{path}" in moments}
        self._heads = block.attention[0].heads if block.attention else 1
        self.attention = Attention.of(self._dense, seen, self._heads) if block.attention else None
        self.units = Units.of(self._dense, seen) if block.mlp else None

    @functools.cached_property
    def curves(self) -> Curves:
        """What each part loses at every size."""
        score, value = self.attention.curves() if self.attention else (np.zeros(1), np.zeros(1))
        if self.units is None:
            return Curves(score, value, np.zeros(1), {})
        widths = {max(1, int(share * self.units.count)) for share in WIDTHS}
        ranks = {width: self.units.mlp(width).curves() for width in widths if width < self.units.count}
        whole = self.units.spectra
        ranks[self.units.count] = (loss_curve(whole["fc1"].losses), loss_curve(whole["fc2"].losses))
        return Curves(score, value, self.units.removal.losses, ranks)

    def narrowed(self, sizes: Sizes) -> tuple[dict[str, Layer], dict[str, Moments]]:
        """The block's layers with so many channels and hidden units, all kernels whole, by their paths in it, float64;
        and the moments of what fc1 and fc2 then read."""
        layers = self.attention.layers(sizes.score, sizes.value) if self.attention else {}
        if self.units is None:
            return layers, {}
        fc1, fc2, moments1, moments2 = self.units.mlp(sizes.width)
        return layers | {"mlp/fc1": fc1, "mlp/fc2": fc2}, {"mlp/fc1": moments1, "mlp/fc2": moments2}

    def layers(self, sizes: Sizes, decomposition: str) -> dict[str, Layer]:
        """`narrowed` with fc1 and fc2 as pairs by that decomposition, where they have a rank."""
        layers, moments = self.narrowed(sizes)
        for name, rank in (("mlp/fc1", sizes.fc1), ("mlp/fc2", sizes.fc2)):
            if rank:
                layers[name] = pair(decomposition, layers[name], rank, moments[name])
        return layers

    def alone(self, part: str, size: int) -> dict[str, Layer]:
        """The dense layers with one part of the block at that size and all else whole, pairs by `weighted_kfac`."""
        whole = full(self.block)
        if part in ("score", "value") and self.attention:
            sizes = whole._replace(**dict[str, Any]({part: size}))
            return self.padded(self.attention.layers(sizes.score, sizes.value))
        assert self.units is not None
        if part == "width":
            mlp = self.units.mlp(size)
            return self.padded({"mlp/fc1": mlp.fc1, "mlp/fc2": mlp.fc2})
        return self.padded({f"mlp/{part}": self.units.pair(part, size)})

    def padded(self, layers: Mapping[str, Layer]) -> dict[str, Layer]:
        """The layers in the dense block's shapes; see `padded`."""
        shapes = {path: layer["kernel"].shape for path, layer in self._dense.items()}
        return padded(layers, shapes, self._heads)


def solve(blocks: list[Block], params: Any, moments: Mapping[str, Moments]) -> dict[str, Solved]:
    """The closed forms of every block, by its path."""

    def one(block: Block) -> Solved:
        solved = Solved(block, params, moments)
        _ = solved.curves
        return solved

    return {solved.block.path: solved for solved in spectra.each(one, blocks, "blocks")}


def padded(layers: Mapping[str, Layer], shapes: Mapping[str, tuple[int, int]], count: int) -> dict[str, Layer]:
    """The layers of a smaller block in the shapes of a dense one, zeros for what is gone: it computes the same.

    Args:
        layers: some of "attn/query", "attn/key", "attn/value" and "attn/proj", all or none of them, and "mlp/fc1" and
            "mlp/fc2"; a kernel, or the pair u, v.
        shapes: of the dense block's kernels, by LAYERS; of those that are wanted.
        count: of heads.
    """
    made: dict[str, Layer] = {}
    if "attn/query" in layers:
        (m, n), n_out = shapes["attn/qkv"], shapes["attn/proj"][1]
        k = n // 3 // count
        kernel, bias, out = np.zeros((m, 3, count, k)), np.zeros((3, count, k)), np.zeros((count, k, n_out))
        for index, name in enumerate(("query", "key", "value")):
            layer = layers[f"attn/{name}"]
            split = layer["kernel"].reshape(m, count, -1)
            kernel[:, index, :, : split.shape[-1]] = split
            if "bias" in layer:
                bias[index, :, : split.shape[-1]] = layer["bias"].reshape(count, -1)
        proj = layers["attn/proj"]
        split = proj["kernel"].reshape(count, -1, n_out)
        out[:, : split.shape[1]] = split
        made["attn/qkv"] = {"kernel": kernel.reshape(m, n), "bias": bias.reshape(-1)}
        made["attn/proj"] = {"kernel": out.reshape(count * k, n_out), "bias": proj["bias"]}
    for path in ("mlp/fc1", "mlp/fc2"):
        if path in layers:
            layer, (m, n) = layers[path], shapes[path]
            small = layer["u"] @ layer["v"] if "u" in layer else layer["kernel"]
            # Outputs of fc1 for each unit of fc2: where there are two, those of all gates come first.
            gates = n // shapes["mlp/fc2"][0] if path == "mlp/fc1" else 1
            there = np.concatenate([np.arange(small.shape[1] // gates) + gate * (n // gates) for gate in range(gates)])
            whole = {"kernel": np.zeros((m, n)), "bias": np.zeros(n)}
            whole["kernel"][: len(small), there], whole["bias"][there] = small, layer["bias"]
            made[path] = whole
    return {path: {name: value.astype(np.float32) for name, value in layer.items()} for path, layer in made.items()}
