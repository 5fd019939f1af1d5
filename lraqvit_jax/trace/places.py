"""What of a function can be made smaller by itself: products of attention heads, MLPs, and every other kernel.

Each place says what it loses at every size, by the closed forms of `lowrank`, and what its sites become.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank import heads, hidden, kfac, pivot, weighted_kfac
from lraqvit_jax.lowrank.bias import bias_shift
from lraqvit_jax.lowrank.heads import Cut
from lraqvit_jax.plan import blocks, cost
from lraqvit_jax.plan.blocks import Scale, Scales
from lraqvit_jax.plan.budget import Choice, Curve, loss_curve
from lraqvit_jax.plan.records import DENSE, LayerPlan
from lraqvit_jax.trace import parts
from lraqvit_jax.trace.attention import Attention
from lraqvit_jax.trace.hidden import Hidden
from lraqvit_jax.trace.parts import Part
from lraqvit_jax.trace.sites import Site

Sizes = dict[str, int]
Biases = dict[str, Float[np.ndarray, " n"]]
"""By site, where they change."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A dense site, float64.

    Attributes:
        site: of it.
        kernel: of it.
        bias: zeros where there is none.
        moments: of its input, with gradients. Where there is no bias to keep the mean of the outputs, the mean counts
            as any other direction does: then it is taken for zero.
    """

    site: Site
    kernel: Float[np.ndarray, "m n"]
    bias: Float[np.ndarray, " n"]
    moments: Moments

    @classmethod
    def of(cls, site: Site, layer: Mapping[str, np.ndarray], moments: Moments) -> "Layer":
        kernel = np.asarray(layer["kernel"], np.float64)
        bias = np.asarray(layer.get("bias", np.zeros(kernel.shape[1])), np.float64)
        if not site.bias:
            felt = None if moments.felt_mean is None else np.zeros_like(moments.felt_mean)
            moments = moments._replace(mean=np.zeros_like(moments.mean), felt_mean=felt)
        return cls(site, kernel, bias, moments)


class Place(Protocol):
    """Something with sizes of its own."""

    @property
    def name(self) -> str:
        """Of the place."""
        ...

    @property
    def sizes(self) -> Sizes:
        """When nothing is left out, by part; the rank of a whole kernel is 0."""
        ...

    def loss(self, part: str, sizes: Sizes) -> float:
        """Predicted mean square change of the outputs with a part at its size, all else whole."""
        ...

    def choices(self, scales: Scales, multiple: int) -> list[Choice]:
        """What it can be, by rising cost in parameters; the losses scaled."""
        ...

    def made(self, sizes: Sizes) -> tuple[list[Part], Biases]:
        """What its sites become, float64; and the biases that change."""
        ...


def _params(made: Part) -> int:
    return cost.layer_cost(made.info, made.entry).params


class _Heads:
    """What the two products of attention share."""

    part: str
    cuts: list[Cut]
    whole: int
    name: str

    @property
    def sizes(self) -> Sizes:
        return {self.part: self.whole}

    @functools.cached_property
    def curve(self) -> Curve:
        losses: Curve = np.sum([cut.losses() for cut in self.cuts], axis=0)
        return losses

    def loss(self, part: str, sizes: Sizes) -> float:
        return float(self.curve[sizes[part]])

    def choices(self, scales: Scales, multiple: int) -> list[Choice]:
        sizes = blocks.steps(self.whole, multiple, self.whole)
        losses = scales[self.name, self.part](self.curve[sizes])
        made = [Choice(self.params(size), loss, {self.part: size}) for size, loss in zip(sizes, losses, strict=True)]
        return blocks.undominated(made)

    def params(self, size: int) -> int:
        raise NotImplementedError


class Scores(_Heads):
    """The score products of an attention block: query and key."""

    part = "score"

    def __init__(self, block: Attention, layers: Mapping[str, Layer], names: tuple[str, str]) -> None:
        """`names` of the parts, where their sites have others too; "" else."""
        assert block.query_channels is not None and block.key_channels is not None
        self.name, self.names = f"{block.output}:score", names
        self.query, self.key, self.channels = layers[block.query], layers[block.key], block.query_channels
        self.keys, self.group = np.unique(block.key_channels, axis=0, return_inverse=True)
        self.group = self.group.reshape(-1)
        with_bias = np.concatenate([self.query.kernel, self.query.bias[None]])
        self.queries = np.stack([with_bias[:, one] for one in self.channels])
        self.kernels = np.stack([self.key.kernel[:, one] for one in self.keys])
        self.whole = self.channels.shape[1]
        felt, gradient = self.query.moments.weighted(), self.query.moments.gradient
        assert gradient is not None
        second = np.block([[felt.second, felt.mean[:, None]], [felt.mean[None], np.ones((1, 1))]])
        at_queries = heads.by_head(gradient, self.channels, len(self.channels))
        covariance = self.key.moments.covariance
        self.cuts = heads.score_cuts(self.queries, self.kernels, self.group, second, covariance, at_queries)

    def params(self, size: int) -> int:
        m, groups = self.key.kernel.shape[0], len(self.keys)
        copied = size if size < m else 0
        return size * (self.query.kernel.shape[0] * len(self.queries) + (m - copied) * groups)

    def made(self, sizes: Sizes) -> tuple[list[Part], Biases]:
        size = sizes[self.part]
        factors = [cut.factors(size) for cut in self.cuts]
        kernels = [kernel @ b.T for kernel, (_, b) in zip(self.kernels, factors, strict=True)]
        entry, key, rows = _with_blocks(kernels, size)
        queries = [
            query @ factors[number][0] @ rows[number].T for query, number in zip(self.queries, self.group, strict=True)
        ]
        whole = np.concatenate(queries, 1)
        made = [
            parts.below(
                self.query.site,
                self.names[0],
                LayerPlan(width=size),
                {"kernel": whole[:-1], "outputs": self.channels[:, :size].reshape(-1)},
                self.channels.reshape(-1),
            ),
            parts.below(
                self.key.site,
                self.names[1],
                entry,
                {**key, "outputs": self.keys[:, :size].reshape(-1)},
                self.keys.reshape(-1),
                len(self.keys),
            ),
        ]
        biases: Biases = {}
        if self.query.site.bias:
            bias = self.query.bias.copy()
            bias[self.channels.reshape(-1)] = 0
            bias[self.channels[:, :size].reshape(-1)] = whole[-1]
            biases[self.query.site.path] = bias
        if self.key.site.bias:
            bias = biases.get(self.key.site.path, self.key.bias).copy()
            bias[self.keys.reshape(-1)] = 0
            biases[self.key.site.path] = bias
        return made, biases


class Values(_Heads):
    """The value products of an attention block: value and projection."""

    part = "value"

    def __init__(self, block: Attention, layers: Mapping[str, Layer], names: tuple[str, str]) -> None:
        """As of `Scores`."""
        assert block.value_channels is not None and block.output_rows is not None
        self.name, self.names, self.normalized = f"{block.output}:value", names, block.normalized
        self.value, self.output, self.rows = layers[block.value], layers[block.output], block.output_rows
        self.channels, self.group = np.unique(block.value_channels, axis=0, return_inverse=True)
        self.group = self.group.reshape(-1)
        self.kernels = np.stack([self.value.kernel[:, one] for one in self.channels])
        self.biases = np.stack([self.value.bias[one] for one in self.channels])
        self.out = np.stack([self.output.kernel[one] for one in self.rows])
        self.whole = self.rows.shape[1]
        felt = self.output.moments.weighted()
        self.mean = np.stack([felt.mean[one] for one in self.rows])
        into = heads.by_head(felt.covariance, self.rows, len(self.rows))
        self.cuts = heads.value_cuts(self.out, self.group, into, kfac.output_root(self.output.moments))

    def params(self, size: int) -> int:
        m, groups = self.value.kernel.shape[0], len(self.channels)
        copied = size if size < m else 0
        return size * ((m - copied) * groups + self.output.kernel.shape[1] * len(self.rows))

    def made(self, sizes: Sizes) -> tuple[list[Part], Biases]:
        size = sizes[self.part]
        factors = [cut.factors(size) for cut in self.cuts]
        kernels = [kernel @ a for kernel, (a, _) in zip(self.kernels, factors, strict=True)]
        entry, value, rows = _with_blocks(kernels, size)
        out = [rows[number] @ factors[number][1] @ kernel for kernel, number in zip(self.out, self.group, strict=True)]
        made = [
            parts.below(
                self.value.site,
                self.names[0],
                entry,
                {**value, "outputs": self.channels[:, :size].reshape(-1)},
                self.channels.reshape(-1),
                len(self.channels),
            ),
            parts.below(
                self.output.site,
                "",
                LayerPlan(width=size),
                {"kernel": np.concatenate(out), "inputs": self.rows[:, :size].reshape(-1)},
            ),
        ]
        return made, self._biases(size, [a for a, _ in factors], [b for _, b in factors], rows)

    def _biases(self, size: int, first: list[Any], second: list[Any], rows: list[Any]) -> Biases:
        """Rows of attention sum to one: the value's bias becomes one of the projection, where that has one."""
        made: Biases = {}
        folded = self.normalized and bool(self.output.site.bias)
        if self.value.site.bias:
            bias = self.value.bias.copy()
            bias[self.channels.reshape(-1)] = 0
            if not folded:
                kept = [
                    np.linalg.lstsq(row.T, one @ a)[0] for row, one, a in zip(rows, self.biases, first, strict=True)
                ]
                bias[self.channels[:, :size].reshape(-1)] = np.concatenate(kept)
            made[self.value.site.path] = bias
        if self.output.site.bias:
            bias = self.output.bias.copy()
            for kernel, mean, number in zip(self.out, self.mean, self.group, strict=True):
                own = self.biases[number] if folded else 0
                bias = bias + own @ kernel if folded else bias
                bias = bias + (mean - own) @ (kernel - first[number] @ (second[number] @ kernel))
            made[self.output.site.path] = bias
        return made


def _with_blocks(
    kernels: Sequence[Float[np.ndarray, "m size"]], size: int
) -> tuple[LayerPlan, dict[str, np.ndarray], list[Float[np.ndarray, "size size"]]]:
    """Kernels by head with identity blocks, where inputs are more than outputs: the form, the layer, and what is left
    to multiply the other side by."""
    if size >= len(kernels[0]):
        return LayerPlan(width=size), {"kernel": np.concatenate(kernels, 1)}, [np.eye(size)] * len(kernels)
    fixed = [pivot.interpolate(kernel) for kernel in kernels]
    layer = {
        "kernel": np.concatenate([one.coefficients for one in fixed], 1),
        "basis": np.stack([one.basis for one in fixed]).astype(np.int16),
    }
    rows = [kernel[one.basis] for kernel, one in zip(kernels, fixed, strict=True)]
    return LayerPlan("pivoted", width=size, basis="input"), layer, rows


class Mlp:
    """The hidden units of an MLP, and the ranks of its kernels; producers share theirs."""

    def __init__(self, found: Hidden, layers: Mapping[str, Layer]) -> None:
        self.name, self.rows = f"{found.reader}:mlp", found.rows
        self.first, self.second = [layers[path] for path in found.producers], layers[found.reader]
        self.units = len(found.rows)
        self.sizes = {"width": self.units, "fc1": 0, "fc2": 0}
        kernel = self.second.kernel[self.rows]
        self.whole = (kernel, self.second.moments.narrowed(self.rows))
        self.removal = hidden.removal(kernel, self.whole[1].weighted(), kfac.output_root(self.second.moments))

    @functools.cached_property
    def ranks(self) -> blocks.Curves:
        """As of one of our own blocks."""
        widths = {max(1, int(share * self.units)) for share in WIDTHS}
        ranks = {width: self._curves(width) for width in widths}
        return blocks.Curves(np.zeros(1), np.zeros(1), self.removal.losses, ranks)

    def _curves(self, width: int) -> tuple[Curve, Curve]:
        first, (second, moments, _) = self._producers(width), self._reader(width)
        curves = [loss_curve(weighted_kfac.losses(kernel, seen)) for kernel, seen in first]
        return np.sum(curves, axis=0), loss_curve(weighted_kfac.losses(second, moments))

    def _producers(self, width: int) -> list[tuple[Float[np.ndarray, "m width"], Moments]]:
        """Kernels with so many channels, and the moments of what they read, with their gradients."""
        kept = self.removal.kept(width)
        return [(layer.kernel[:, kept], _of_outputs(layer.moments, kept)) for layer in self.first]

    def _reader(self, width: int) -> tuple[Float[np.ndarray, "width n"], Moments, Float[np.ndarray, " n"]]:
        """The kernel of so many units, the moments of what it reads, and what its bias gains."""
        kernel, moments = self.whole
        if width >= self.units:
            return kernel, moments, np.zeros(kernel.shape[1])
        kept = self.removal.kept(width)
        smaller, shift = hidden.compensated(kernel, moments.weighted(), kept)
        return smaller, moments.narrowed(kept), shift

    def loss(self, part: str, sizes: Sizes) -> float:
        return self.ranks.loss(part, blocks.Sizes(width=sizes["width"], fc1=sizes["fc1"], fc2=sizes["fc2"]))

    def choices(self, scales: Scales, multiple: int) -> list[Choice]:
        n = self.second.kernel.shape[1]

        def lost(width: int) -> float:
            return float(scales[self.name, "width"](self.removal.losses[width]))

        def side(part: str, width: int, ranks: Sequence[int]) -> list[Choice]:
            kernels = [(layer.kernel.shape[0], width) for layer in self.first] if part == "fc1" else [(width, n)]
            costs = [sum(rank * (m + k - rank) if rank else m * k for m, k in kernels) for rank in ranks]
            predicted = np.array([self.loss(part, {**self.sizes, "width": width, part: rank}) for rank in ranks])
            losses = scales[self.name, part](predicted)
            return [Choice(cost, loss, {part: rank}) for cost, loss, rank in zip(costs, losses, ranks, strict=True)]

        smaller = min(n, *(layer.kernel.shape[0] for layer in self.first))
        return blocks.mlp_choices(self.units, smaller, multiple, lost, side)

    def made(self, sizes: Sizes) -> tuple[list[Part], Biases]:
        width, kept, biases = sizes["width"], self.removal.kept(sizes["width"]), Biases()
        narrow, made = width < self.units, []
        for layer, (kernel, moments) in zip(self.first, self._producers(width), strict=True):
            entry, small, shift = _ranked(kernel, moments, sizes["fc1"], width if narrow else 0)
            made.append(parts.below(layer.site, "", entry, {**small, **({"outputs": kept} if narrow else {})}))
            if layer.site.bias:
                biases[layer.site.path] = layer.bias.copy()
                biases[layer.site.path][kept] += shift
        kernel, moments, gained = self._reader(width) if narrow else (self.second.kernel, self.second.moments, 0.0)
        entry, small, shift = _ranked(kernel, moments, sizes["fc2"], width if narrow else 0)
        inputs = {"inputs": self.rows[kept]} if narrow else {}
        made.append(parts.below(self.second.site, "", entry, {**small, **inputs}))
        if self.second.site.bias:
            biases[self.second.site.path] = self.second.bias + gained + shift
        return made, biases


WIDTHS = (1.0, 0.75, 0.5, 0.25)
"""Shares of the hidden units at which the losses of ranks are computed; between them they are interpolated."""


class Kernel:
    """One kernel, or some of its columns, as a pair."""

    def __init__(self, layer: Layer, name: str = "", channels: Int[np.ndarray, " k"] | None = None) -> None:
        """`name` of the columns, where they are not all."""
        self.layer, self.part_name, self.channels = layer, name, channels
        self.name, self.sizes = f"{layer.site.path}/{name}:rank" if name else f"{layer.site.path}:rank", {"rank": 0}
        self.kernel, self.moments = layer.kernel, layer.moments
        if channels is not None:
            self.kernel, self.moments = layer.kernel[:, channels], _of_outputs(layer.moments, channels)

    @functools.cached_property
    def curve(self) -> Curve:
        return loss_curve(weighted_kfac.losses(self.kernel, self.moments))

    def loss(self, part: str, sizes: Sizes) -> float:
        return float(self.curve[sizes[part]]) if sizes[part] else 0.0

    def choices(self, scales: Scales, multiple: int) -> list[Choice]:
        m, n = self.kernel.shape
        ranks = range(multiple, min(m, n), multiple)
        losses = scales[self.name, "rank"](self.curve[list(ranks)] if ranks else np.zeros(0))
        pairs = zip(ranks, losses, strict=True)
        made = [Choice(float(rank * (m + n - rank)), float(loss), {"rank": rank}) for rank, loss in pairs]
        return [*made, Choice(float(m * n), 0.0, {"rank": 0})]

    def made(self, sizes: Sizes) -> tuple[list[Part], Biases]:
        entry, small, shift = _ranked(self.kernel, self.moments, sizes["rank"], 0)
        outputs = {} if self.channels is None else {"outputs": self.channels}
        part = parts.below(self.layer.site, self.part_name, entry, {**small, **outputs}, self.channels)
        if not self.layer.site.bias or not sizes["rank"]:
            return [part], {}
        bias = self.layer.bias.copy()
        bias[slice(None) if self.channels is None else self.channels] += shift
        return [part], {self.layer.site.path: bias}


def _of_outputs(moments: Moments, channels: Int[np.ndarray, " k"]) -> Moments:
    """The moments of what a kernel reads of which these columns are left."""
    assert moments.gradient is not None
    return moments._replace(gradient=moments.gradient[np.ix_(channels, channels)])


def _ranked(
    kernel: Float[np.ndarray, "m n"], moments: Moments, rank: int, width: int
) -> tuple[LayerPlan, dict[str, np.ndarray], Any]:
    """A kernel whole, or as a pair with an identity block: its form, its parameters, and what its bias gains."""
    if not rank:
        return dataclasses.replace(DENSE, width=width), {"kernel": kernel}, 0.0
    pair = weighted_kfac.decompose(kernel, rank, moments)
    fixed = pivot.output_side(pair)
    layer = {"u": fixed.first, "v": fixed.second, "basis": fixed.basis.astype(np.int16)}
    shift = bias_shift(kernel, pair, weighted_kfac.seen(moments))
    return LayerPlan("pivoted", rank, width=width, basis="output"), layer, shift


def unmeasured(places: Sequence[Place]) -> dict[tuple[str, str], Scale]:
    """The scales of all places, before anything was measured."""
    return {(place.name, part): Scale(blocks.PRIOR) for place in places for part in place.sizes}
