"""Attention needs the product of two kernels, not the kernels: the score and the value product of every head.

*Scores.* With `x~ = [x, 1]`, head h computes `(x~ Wq~) (x' Wk + bk)ᵀ`. The softmax does not see what is the same for
every key, so bk drops out, and what counts is `Wq~ Wkᵀ`, of rank head_dim at most.
*Values.* Rows of attention sum to one, so bv becomes a bias `bv Wo` of the projection, and what counts is `Wv Wo`.

Both are products `first @ second` through an inner dimension, of which a part is kept. With `R1ᵀ R1` the second moment
of what comes into it (`x first`) and `R2ᵀ R2` that of the logits' gradient there, an error E between the factors moves
the logits by `|R1 E R2ᵀ|²` in mean square, as in `kfac`: the best part is the truncated SVD of `R1 R2ᵀ`. All matrices
are of the inner dimension alone, so this takes milliseconds a head.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.lowrank import kfac
from lraqvit_jax.plan.budget import loss_curve

SMALLEST = 1e-10
"""Singular values below this share of the largest count as zero."""
KEYS = 1.0
"""How much the covariance of the keys adds to the gradient's second moment at the queries, its trace made the same: the
gradient sees the first order alone. On ViT-Tiny 0 changes the logits by 30 % more in late blocks."""


Factors = tuple[Float[np.ndarray, "k width"], Float[np.ndarray, "width k"]]


class Cut(NamedTuple):
    """`R1 R2ᵀ = left diag(values) right`, values descending; R1 and R2 symmetric."""

    first: Float[np.ndarray, "k k"]
    second: Float[np.ndarray, "k k"]
    left: Float[np.ndarray, "k k"]
    values: Float[np.ndarray, " k"]
    right: Float[np.ndarray, "k k"]

    def losses(self) -> Float[np.ndarray, " k+1"]:
        """Mean square change of the logits with 0, 1, ... k channels left, falling to 0."""
        return loss_curve(np.square(self.values))

    def factors(self, width: int) -> Factors:
        """a and b of `first @ a`, `b @ second`, that keep `width` channels; the identity where that is all."""
        k = len(self.values)
        if width >= k:
            return np.eye(k), np.eye(k)
        values = self.values[:width]
        there = values > SMALLEST * max(self.values[0], np.finfo(float).tiny)
        scale = np.where(there, 1 / np.sqrt(np.where(there, values, 1)), 0)
        return self.second @ self.right[:width].T * scale, scale[:, None] * (self.left[:, :width].T @ self.first)


def cut(into: Float[np.ndarray, "k k"], felt: Float[np.ndarray, "k k"]) -> Cut:
    """The SVD that both products are truncated by.

    Args:
        into: R1ᵀ R1.
        felt: R2ᵀ R2.
    """
    first, second = _root(into), _root(felt)
    return Cut(first, second, *np.linalg.svd(first @ second))


def score_cuts(
    query: Float[np.ndarray, "heads m1 k"],
    key: Float[np.ndarray, "groups m k"],
    group: Int[np.ndarray, " heads"],
    second: Float[np.ndarray, "m1 m1"],
    covariance: Float[np.ndarray, "m m"],
    felt: Float[np.ndarray, "heads k k"],
) -> list[Cut]:
    """How the score product of each group of heads, those that share a key, is cut.

    Args:
        query: kernels by head, each with its bias below.
        key: kernels by group.
        group: of each head.
        second: E[x~ x~ᵀ] of what the queries read.
        covariance: of what the keys read.
        felt: second moments of the gradient at the queries, by head.
    """
    cuts = []
    for number, kernel in enumerate(key):
        members = np.flatnonzero(group == number)
        at_query, keys = felt[members].mean(0), kernel.T @ covariance @ kernel
        scale = np.trace(at_query) / max(np.trace(keys), np.finfo(float).tiny)
        into = sum(query[head].T @ second @ query[head] for head in members)
        cuts.append(cut(into, at_query + KEYS * scale * keys))
    return cuts


def value_cuts(
    out: Float[np.ndarray, "heads k n"],
    group: Int[np.ndarray, " heads"],
    into: Float[np.ndarray, "heads k k"],
    root: Float[np.ndarray, "n n"],
) -> list[Cut]:
    """How the value product of each group of heads, those that share a value, is cut.

    Args:
        out: rows of the projection, by head.
        group: of each head, from 0 without a gap.
        into: second moments of what these rows read, about their means where the projection has a bias.
        root: of the gradient's second moment at the projection's output; see `kfac.output_root`.
    """
    cuts = []
    for number in range(int(group.max()) + 1):
        members = np.flatnonzero(group == number)
        felt = sum((out[head] @ root) @ (out[head] @ root).T for head in members)
        cuts.append(cut(into[members].mean(0), felt))
    return cuts


def by_head(
    matrix: Float[np.ndarray, "n n"], channels: Int[np.ndarray, "..."], heads: int
) -> Float[np.ndarray, "heads k k"]:
    """The blocks of a matrix that belong to the channels of each head."""
    return np.stack([matrix[np.ix_(of_head, of_head)] for of_head in np.reshape(channels, (heads, -1))])


def _root(matrix: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """The symmetric square root of a matrix that rounding may have left indefinite."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


@dataclasses.dataclass(frozen=True)
class Attention:
    """The kernels of a dense attention block by head, float64.

    Attributes:
        query: kernels, and below them the bias.
        key: kernels; their bias is not needed.
        value: kernels.
        value_bias: of them.
        out: the rows of the projection that belong to each head.
        bias: of the projection.
    """

    query: Float[np.ndarray, "heads m+1 k"]
    key: Float[np.ndarray, "heads m k"]
    value: Float[np.ndarray, "heads m k"]
    value_bias: Float[np.ndarray, "heads k"]
    out: Float[np.ndarray, "heads k n"]
    bias: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, qkv: Any, proj: Any, heads: int) -> "Attention":
        """From the layers {kernel, bias} of query, key and value together and of the projection."""
        kernel, bias = np.asarray(qkv["kernel"], np.float64), np.asarray(qkv["bias"], np.float64)
        whole = np.concatenate([kernel, bias[None]]).reshape(len(kernel) + 1, 3, heads, -1)
        query, key, value = np.moveaxis(whole, (1, 2), (0, 1))
        out = np.asarray(proj["kernel"], np.float64).reshape(heads, -1, proj["kernel"].shape[1])
        return cls(query, key[:, :-1], value[:, :-1], value[:, -1], out, np.asarray(proj["bias"], np.float64))

    def scores(self, qkv: Moments) -> list[Cut]:
        """How the score product of each head is cut, by the moments of what the layer reads, with gradients."""
        assert qkv.gradient is not None
        felt = qkv.weighted()
        second = np.block([[felt.second, felt.mean[:, None]], [felt.mean[None], np.ones((1, 1))]])
        at_queries = by_head(qkv.gradient, np.arange(self.query.shape[0] * self.query.shape[2]), len(self.query))
        return score_cuts(self.query, self.key, np.arange(len(self.key)), second, qkv.covariance, at_queries)

    def values(self, proj: Moments) -> list[Cut]:
        """How the value product of each head is cut, by the moments of what the projection reads, with gradients."""
        heads, k, _ = self.out.shape
        into = by_head(proj.weighted().covariance, np.arange(heads * k), heads)
        return value_cuts(self.out, np.arange(heads), into, kfac.output_root(proj))

    def smaller(
        self, scores: list[Factors], values: list[Factors], mean: Float[np.ndarray, " hk"]
    ) -> dict[str, dict[str, np.ndarray]]:
        """The layers "query", "key", "value" and "proj" of what is left, float64.

        Args:
            scores: of every head, what goes between query and key; see `Cut.factors`.
            values: likewise between value and projection.
            mean: of what the projection reads: its bias keeps the mean of the outputs.
        """
        query = np.concatenate([kernel @ a for kernel, (a, _) in zip(self.query, scores, strict=True)], 1)
        key = np.concatenate([kernel @ b.T for kernel, (_, b) in zip(self.key, scores, strict=True)], 1)
        value = np.concatenate([kernel @ a for kernel, (a, _) in zip(self.value, values, strict=True)], 1)
        out = np.concatenate([b @ kernel for kernel, (_, b) in zip(self.out, values, strict=True)])
        bias = self.bias + np.einsum("hk,hkn->n", self.value_bias, self.out)
        means = mean.reshape(self.value_bias.shape) - self.value_bias
        for kernel, center, (a, b) in zip(self.out, means, values, strict=True):
            bias = bias + center @ (kernel - a @ (b @ kernel))
        return {
            "query": {"kernel": query[:-1], "bias": query[-1]},
            "key": {"kernel": key},
            "value": {"kernel": value},
            "proj": {"kernel": out, "bias": bias},
        }
