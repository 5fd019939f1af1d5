"""The plan: what form each linear layer takes, and what that costs.

A plan is a plain mapping from layer path to `LayerPlan`. It is written to `plan.json`, may be edited by hand,
travels with every artefact, and is all that a model needs to know its own shape.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

FORMS = ("dense", "reparam", "low_rank", "pivoted", "quantized")
BASES = ("", "input", "output", "leading")
PAIR_BASES = {"qkv": "input", "fc1": "leading"}
"""Where the identity block of a pair lies, by the layer's name; elsewhere it is "output". What qkv copies is gathered
from its inputs, a third of its outputs; the order of fc1's outputs goes into fc2."""
HEAD_PARTS = ("query", "key", "value")
"""Layers in place of a "qkv" whose attention is planned by head."""
PACKED = (3, 4, 5, 6)
"""Widths of kernels that are stored in fewer bytes than entries; 7 bits take a byte, as 8 do."""


class Integers(NamedTuple):
    """Integers of which a kernel may be: `weight_bits` and `group` of a `LayerPlan`."""

    bits: int
    group: int = 0

    def __str__(self) -> str:
        """Such as "4", or "4/64" in groups of 64."""
        return f"{self.bits}/{self.group}" if self.group else str(self.bits)

    @classmethod
    def read(cls, text: str) -> "Integers":
        """The inverse of `str`; ValueError for anything else."""
        return cls(*map(int, text.split("/")))

    @classmethod
    def all(cls, widths: Iterable[int], groups: Iterable[int]) -> "list[Integers]":
        """Those of these bits, and in these groups where there are more bits yet."""
        widths, groups = list(widths), list(groups)
        most = max(widths, default=0)
        return [cls(bits, group) for bits in widths for group in (0, *(groups if bits < most else ()))]


@dataclasses.dataclass(frozen=True)
class LinearInfo:
    """One linear layer of a model, `y = x @ W + b`.

    Attributes:
        path: parameter path, "/" between the names.
        features_in: m, rows of the kernel.
        features_out: n, columns of the kernel.
        tokens: rows of the input an image gives (1 for a classifier head).
        kind: "attention", "mlp", "embed" (patch embedding, patch merging) or "head". Only the first two are factorized.
        norm: path of the LayerNorm whose output is this layer's only input, or "".
        bias: whether b is there.
        padded: whether zeros come among the inputs behind that norm (Swin fills up its maps to whole windows).
        heads: of an attention layer, how many heads share its channels; 0 elsewhere.
        gated: of an "fc1", whether it gives two numbers for each hidden unit, first those of all gates (SwiGLU).
        normed: of a "qkv", whether a LayerNorm sees each head's query and key.
        pivoted: while ranks are chosen, whether a pair of this layer would have an identity block.
    """

    path: str
    features_in: int
    features_out: int
    tokens: int
    kind: str
    norm: str = ""
    bias: bool = True
    padded: bool = False
    heads: int = 0
    gated: bool = False
    normed: bool = False
    pivoted: bool = False

    @property
    def takes_shift(self) -> bool:
        """Whether the norm may subtract a vector that the bias makes good: no input comes from elsewhere, as padding
        does, and there is a bias. (A division needs a norm alone: it leaves zeros what they are.)"""
        return bool(self.norm) and self.bias and not self.padded

    @property
    def gates(self) -> int:
        """Outputs for each hidden unit, of an "fc1"."""
        return 2 if self.gated else 1

    @property
    def compressible(self) -> bool:
        """Whether the layer is inside an encoder block (those that the paper covers)."""
        return self.kind in ("attention", "mlp")

    @property
    def break_even(self) -> float:
        """The rank at which a pair has as many parameters as the dense kernel: m n / (m + n), or the full one, with
        an identity block."""
        if self.pivoted:
            return min(self.features_in, self.features_out)
        return self.features_in * self.features_out / (self.features_in + self.features_out)

    def break_even_of(self, layer: "LayerPlan") -> float:
        """`break_even` of a pair as that entry of a plan has it."""
        return dataclasses.replace(self, pivoted=self.pivoted or bool(layer.basis)).break_even


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one linear layer is stored and computed.

    Attributes:
        form: one of FORMS; see `lraqvit_jax.models.linear`.
        rank: rank r of the pair; 0 keeps one dense kernel.
        width: channels that are left of those that this layer shares with a neighbour; 0 is all. Of "query", "key",
            "value" and "proj" those of a head, of "fc1" and "fc2" the hidden units.
        basis: where the identity block of a pivoted pair lies: "input", r of the inputs pass through; "output", r of
            the outputs are what is between the factors; "leading", the first r outputs are. "" is a plain pair. With
            rank 0, the kernel of each head of a "key" or "value" has the block: "input".
        bits: of the activations of a quantized layer, one of BITS; 0 means float.
        granularity: of the activation scales: "per_tensor", "per_token" (static, by position), "per_token_dynamic".
        clip: share of the observed activation range that the grid spans, in (0, 1].
        smoothed: whether the input is divided by a stored vector before it is quantized.
        smoothed_z: likewise what is between the factors of a pair with an identity block.
        weight_bits: of its kernels; 0 is `bits`.
        group: input channels that share a scale of the kernel; 0 is all of them.
        asymmetric: whether the grid of the activations has a zero point.
        clip_z: `clip` of the activations between the factors of a pair; 0 is the same.
        attention: of a layer "qkv": how the products of attention are computed. "float", or on integers, with the
            softmax on a "uniform" grid or on one of powers of sqrt(2), "log_sqrt2".
    """

    form: str = "dense"
    rank: int = 0
    bits: int = 0
    granularity: str = "per_tensor"
    clip: float = 1.0
    smoothed: bool = False
    weight_bits: int = 0
    group: int = 0
    asymmetric: bool = False
    clip_z: float = 0.0
    attention: str = "float"
    width: int = 0
    basis: str = ""
    smoothed_z: bool = False

    @property
    def kernel_bits(self) -> int:
        return self.weight_bits or self.bits

    @property
    def copies_between(self) -> bool:
        """Whether an identity block makes what is between two factors an input or an output itself."""
        return bool(self.rank and self.basis)

    def clip_of(self, part: str) -> float:
        """The share of the range of "x", what the layer reads, or of "z", what is between its factors."""
        return self.clip_z or self.clip if part == "z" else self.clip


DENSE = LayerPlan()
Plan = Mapping[str, LayerPlan]


def resolved(layers: Iterable[LinearInfo], plan: Plan) -> list[LinearInfo]:
    """The linear layers that a model of this plan has: a dense model's, with the widths of the plan, and with "query",
    "key" and "value" for a "qkv" whose attention is planned by head.

    Args:
        layers: of the dense model, in the order of the forward pass.
        plan: of the model.

    Layers that are those of the plan already stay what they are.
    """
    return [
        part for info in layers for part in (_by_head(info, plan) if by_head(info, plan) else [_narrowed(info, plan)])
    ]


def by_head(info: LinearInfo, plan: Plan) -> bool:
    """Whether the plan has the layers of `HEAD_PARTS` for this "qkv"."""
    return info.path.endswith("/qkv") and info.path not in plan and sibling(info.path, "query") in plan


def sibling(path: str, name: str) -> str:
    """The path of a layer beside another: sibling("a/qkv", "proj") is "a/proj"."""
    return "/".join((*path.split("/")[:-1], name))


def _by_head(qkv: LinearInfo, plan: Plan) -> list[LinearInfo]:
    """Query, key and value in place of a "qkv". Of the key's bias softmax sees nothing, that of the value is folded
    into the projection's; the norm before them has three readers, and takes nothing from any of them."""
    parts = []
    for name in HEAD_PARTS:
        path = sibling(qkv.path, name)
        wide = plan[path].width * qkv.heads if path in plan and plan[path].width else qkv.features_out // 3
        parts.append(dataclasses.replace(qkv, path=path, features_out=wide, norm="", bias=name == "query"))
    return parts


def _narrowed(info: LinearInfo, plan: Plan) -> LinearInfo:
    """A layer with the channels that the plan leaves of it; what a plan was resolved to stays as it is."""
    if info.path.rpartition("/")[2] in HEAD_PARTS:
        return info
    layer = plan.get(info.path, DENSE)
    norm = "" if layer.basis == "input" else info.norm
    if not layer.width:
        return dataclasses.replace(info, norm=norm)
    wide = layer.width * (info.heads or 1)
    if info.path.endswith("/fc1"):
        return dataclasses.replace(info, norm=norm, features_out=layer.width * info.gates)
    return dataclasses.replace(info, norm=norm, features_in=wide)


def pivoted(info: LinearInfo, rank: int, width: int = 0) -> LayerPlan:
    """The entry of a layer whose pair has an identity block, where it costs least; float and deployed. The outputs of a
    gated "fc1" come in their own order."""
    basis = "output" if info.gated else PAIR_BASES.get(info.path.rpartition("/")[2], "output")
    return LayerPlan("pivoted", rank, width=width, basis=basis)


def low_rank(plan: Plan, form: str = "low_rank") -> dict[str, LayerPlan]:
    """Returns the float plan of training: every planned pair in `form` ("low_rank" or "reparam"), the rest dense, no
    identity block anywhere."""
    return {
        path: LayerPlan(form=form if layer.rank else "dense", rank=layer.rank, width=layer.width)
        for path, layer in plan.items()
    }


def merged(plan: Plan) -> dict[str, LayerPlan]:
    """Returns the float plan of what is deployed: pairs without a branch, identity blocks where they are planned."""
    return {
        path: dataclasses.replace(layer, form="pivoted", basis=plan[path].basis) if plan[path].basis else layer
        for path, layer in low_rank(plan).items()
    }


def dense(layers: Iterable[LinearInfo]) -> dict[str, LayerPlan]:
    """Returns the plan that leaves every layer as it is."""
    return {layer.path: LayerPlan() for layer in layers}
