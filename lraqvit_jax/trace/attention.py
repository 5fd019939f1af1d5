"""Which sites make head products: query meets key, a softmax follows, its weights meet value, the output is projected.

What matters of query and key is the product of their kernels, head by head, as long as nothing but a change of layout,
a scalar or a bias lies between kernel and product; likewise of value and output. A rotation by position (RoPE) or a
norm on query and key is neither: it forbids the score product, and not that of the values. All of it shows in the
jaxpr: an `Activation` carries a role, and this file says what an equation makes of the roles of its operands.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core
from jaxtyping import Int

from lraqvit_jax.trace import channels
from lraqvit_jax.trace.channels import Index
from lraqvit_jax.trace.roles import Channels, Heads, Mixed, Role, Scores, Total
from lraqvit_jax.trace.views import shape_of

SUMS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "reduce_and", "reduce_or")
ELEMENTWISE = (
    *("add", "sub", "mul", "div", "neg", "max", "min", "abs", "sign", "square", "sqrt", "rsqrt", "cbrt"),
    *("pow", "integer_pow", "exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "erfc", "sin", "cos"),
    *("select_n", "clamp", "gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not", "floor", "ceil", "round"),
    *("add_any", "is_finite", "reduce_precision", "nextafter"),
)
"""Primitives whose outputs depend on the entry in their own place alone, once scalars are broadcast."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """One attention block.

    Attributes:
        query: path of the site; that of key and value too, where the kernel is fused.
        key: likewise.
        value: likewise.
        output: path of the projection.
        head_dim: channels of a query's head.
        normalized: whether what each query adds up of the values are shares of one.
        score_reason: why query and key make no score product; "" where they do.
        value_reason: likewise of value and output.
        query_channels: by head; None where there is no score product.
        key_channels: likewise; heads may share theirs.
        value_channels: by head; None where there is no value product. Heads may share theirs.
        output_rows: rows of the projection's kernel that read them.
    """

    query: str
    key: str
    value: str
    output: str
    head_dim: int
    normalized: bool = True
    score_reason: str = ""
    value_reason: str = ""
    query_channels: Heads | None = None
    key_channels: Heads | None = None
    value_channels: Heads | None = None
    output_rows: Heads | None = None

    def __str__(self) -> str:
        names = list(dict.fromkeys((self.query, self.key, self.value, self.output)))
        score = f"no score product: {self.score_reason}" if self.score_reason else "score product"
        value = f"no value product: {self.value_reason}" if self.value_reason else "value product"
        return f"{', '.join(names)}, heads of {self.head_dim}: {score}; {value}"

    def same_as(self, other: "Attention") -> bool:
        """Whether it is the same block, met once more."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return all(np.array_equal(one, two) if isinstance(one, np.ndarray) else one is two or one == two
                   for one, two in pairs)  # fmt: skip


def product(eqn: core.JaxprEqn, left: Role | None, right: Role | None) -> Role | None:
    """The role of a product of two activations."""
    if eqn.primitive.name != "dot_general":
        return None
    if isinstance(left, Channels) and isinstance(right, Channels) and left.site and right.site:
        return _scores(eqn, left, right)
    for side, (scores, value) in enumerate(((left, right), (right, left))):
        if isinstance(scores, Scores) and scores.soft and isinstance(value, Channels) and value.site:
            return _mixed(eqn, side, scores, value)
    return None


def _scores(eqn: core.JaxprEqn, query: Channels, key: Channels) -> Scores:
    contracted, _ = eqn.params["dimension_numbers"]
    count = int(np.prod([shape_of(eqn.invars[0])[axis] for axis in contracted[0]], dtype=int))
    arranged = _arranged(eqn, (query.index, key.index))
    if arranged is None:
        return Scores(query, key, count, None, None, None, None)
    one, other, last = arranged
    heads = one.shape[:-last] if last else one.shape
    number = np.arange(int(np.prod(heads, dtype=int))).reshape(heads)
    of_query, of_key = (part.reshape(number.size, -1) for part in (one, other))
    return Scores(query, key, count, of_query, of_key, number, _keys(eqn, key.index))


def _keys(eqn: core.JaxprEqn, index: Index | None) -> Index | None:
    """The key's place along the axes of a product whose second operand are the keys."""
    if index is None:
        return None
    summed, batch = (pair[1] for pair in eqn.params["dimension_numbers"])
    free = [axis for axis in range(index.ndim) if axis not in (*summed, *batch)]
    out = shape_of(eqn.outvars[0])
    shape = [1] * (len(out) - len(free))
    shape += [shape_of(eqn.invars[1])[axis] if index.shape[axis] == 1 else 1 for axis in free]
    return np.arange(int(np.prod(shape, dtype=int))).reshape(shape)


def _arranged(eqn: core.JaxprEqn, indices: tuple[Index | None, Index | None]) -> tuple[Index, Index, int] | None:
    """The channels of two operands along the output's axes, of size one where neither depends on them, and behind these
    the axes that are summed over, whole; how many of these there are."""
    one, other = indices
    if one is None or other is None:
        return None
    summed, batch = eqn.params["dimension_numbers"]
    free = [[axis for axis in range(index.ndim) if axis not in (*summed[side], *batch[side])]
            for side, index in enumerate((one, other))]  # fmt: skip
    first, second = len(batch[0]), len(batch[0]) + len(free[0])
    left = channels.axes_first(one, batch[0], free[0], summed[0])
    left = np.expand_dims(left, tuple(range(second, second + len(free[1]))))
    right = channels.axes_first(other, batch[1], free[1], summed[1])
    right = np.expand_dims(right, tuple(range(first, second)))
    whole = [shape_of(eqn.invars[0])[axis] for axis in summed[0]]
    shape = [max(sizes) for sizes in zip(left.shape, right.shape, strict=True)]
    shape = [*shape[: len(shape) - len(whole)], *whole]
    if np.prod(shape, dtype=float) > channels.LARGEST:
        return None
    return np.broadcast_to(left, shape), np.broadcast_to(right, shape), len(whole)


def _mixed(eqn: core.JaxprEqn, side: int, scores: Scores, value: Channels) -> Mixed:
    """`side` is that of the scores."""
    nothing = Mixed(scores, value, None, None)
    pair = (scores.index, value.index) if side == 0 else (value.index, scores.index)
    summed, _ = eqn.params["dimension_numbers"]
    for number, index in enumerate(pair):
        if index is None or any(index.shape[axis] > 1 for axis in summed[number]):
            return nothing
    arranged = _arranged(eqn, pair)
    if arranged is None:
        return nothing
    left, right, last = arranged
    if last:
        left, right = (part.reshape(*part.shape[:-last], -1)[..., 0] for part in (left, right))
    head, channel = (left, right) if side == 0 else (right, left)
    # Entries by head, and in it in their order: the slots.
    order = np.argsort(head.reshape(-1), kind="stable")
    count = int(head.max()) + 1
    if head.size % count or np.any(np.bincount(head.reshape(-1), minlength=count) != head.size // count):
        return nothing
    slot = np.empty(head.size, int)
    slot[order] = np.arange(head.size)
    return Mixed(scores, value, channel.reshape(-1)[order].reshape(count, -1), slot.reshape(head.shape))


def of_site(role: Role | None, path: str, rows: Int[np.ndarray, " m"] | None) -> Attention | None:
    """The attention block whose projection is the site that reads this; None where it reads something else.

    Args:
        role: of what it reads.
        path: of the site.
        rows: the index of the role for each row of its kernel.
    """
    if not isinstance(role, Mixed):
        return None
    scores, values = role.scores, role.channels
    score = _reason(scores.query.changed | scores.key.changed | scores.changed)
    value = _reason(role.value.changed | role.changed)
    if not score and not scores.normalized:
        score = "its scores are not normalized over the keys"
    if not score and not (_apart(scores.query_channels) and _apart(scores.key_channels)):
        score = UNFOLLOWED
    whole = values is not None and rows is not None and np.array_equal(np.sort(rows), np.arange(values.size))
    if not value and not (whole and _apart(values)):
        value = UNFOLLOWED
    kept: tuple[Heads | None, ...] = (None, None) if score else (scores.query_channels, scores.key_channels)
    more: tuple[Heads | None, ...] = (None, None)
    if not value and values is not None and rows is not None:
        more = values, np.argsort(rows).reshape(values.shape)
    return Attention(
        scores.query.site,
        scores.key.site,
        role.value.site,
        path,
        scores.head_dim,
        scores.normalized,
        score,
        value,
        *kept,
        *more,
    )


def _apart(heads: Heads | None) -> bool:
    """Whether heads have channels of their own, or all of another's."""
    if heads is None:
        return False
    groups = np.unique(heads, axis=0)
    return len(np.unique(groups)) == groups.size


UNFOLLOWED = "its layout is not followed"


def _reason(changed: frozenset[str]) -> str:
    return f"{', '.join(sorted(changed))} between kernel and product" if changed else ""


def plain(eqn: core.JaxprEqn, roles: Sequence[Role | None], others: Sequence[Any], scalars: bool) -> list[Role | None]:
    """The roles of what a primitive that is no product makes of activations.

    Args:
        eqn: of the primitive.
        roles: of its activations.
        others: values of its other operands, None where nobody knows.
        scalars: whether these have one entry each.
    """
    name, known = eqn.primitive.name, [role for role in roles if role is not None]
    made: list[Role | None] | Role | None = None
    whole = len(known) == len(roles)
    if not known:
        pass
    elif name in channels.MOVING:
        made = _moved(eqn, known, others) if whole and (name != "concatenate" or not others) else None
    elif isinstance(known[0], Scores):
        made = _of_scores(eqn, known[0], known[1:])
    elif name not in SUMS and (whole or name not in ("add", "sub", "add_any")):  # of a stream that others add to
        made = _changed(eqn, known, whole, scales=len(roles) == 1 and scalars)
    return made if isinstance(made, list) else [made] * len(eqn.outvars)


def _moved(eqn: core.JaxprEqn, roles: Sequence[Role], others: Sequence[Any]) -> list[Role | None] | None:
    one = _joined(roles)
    if one is None or isinstance(one, Total):
        return [one] * len(eqn.outvars)
    indices = channels.moved(eqn, [role.index for role in roles], others)
    made: list[Role | None] = [dataclasses.replace(one, index=index) for index in indices]
    if isinstance(one, Scores):
        keys = channels.moved(eqn, [role.keys for role in roles if isinstance(role, Scores)], others)
        made = [dataclasses.replace(one, index=index, keys=of) for index, of in zip(indices, keys, strict=True)]
    return made


def _of_scores(eqn: core.JaxprEqn, scores: Scores, more: Sequence[Role]) -> Role | None:
    """A softmax is an exponential, divided by its sum over the keys."""
    name, other = eqn.primitive.name, more[0] if more else None
    if name == "reduce_sum":
        along = () if scores.keys is None else {axis for axis, size in enumerate(scores.keys.shape) if size > 1}
        return Total(scores) if scores.soft and along == set(eqn.params["axes"]) else None
    if name in SUMS:
        return None
    of_same = isinstance(other, Total) and other.scores.query is scores.query and other.scores.key is scores.key
    if name == "div" and of_same:
        return dataclasses.replace(scores, normalized=True)
    mixes = isinstance(other, Scores) and (other.query is not scores.query or other.key is not scores.key)
    changed = scores.changed | ({name} if mixes or name not in ELEMENTWISE else set())
    return dataclasses.replace(
        scores, soft=scores.soft or name in ("exp", "exp2"), normalized=False, changed=frozenset(changed)
    )


def _changed(eqn: core.JaxprEqn, roles: Sequence[Role], whole: bool, scales: bool) -> Role | None:
    """What a primitive makes of channels that moves none: of its own channel alone, or of others too."""
    one, name = _joined(roles), eqn.primitive.name
    if one is None or isinstance(one, Total | Scores):
        return None
    apart = whole and name in ELEMENTWISE
    there = one.index is not None and (apart or one.index.ndim == len(shape_of(eqn.outvars[0])))
    index = one.index if there else None
    changed = one.changed if scales and name in ("mul", "div", "neg") else one.changed | {name}
    if isinstance(one, Channels):
        return Channels(one.sites, index, changed, one.apart and apart)
    return dataclasses.replace(one, index=index, changed=changed)


def _joined(roles: Sequence[Role]) -> Role | None:
    """One role of several, with what each of them went through; None where they are of different places."""
    first, sites = roles[0], frozenset[str]().union(*(role.sites for role in roles))
    if len(roles) == 1:
        return first
    if any(type(role) is not type(first) for role in roles):
        return None
    indices = [role.index for role in roles if role.index is not None]
    same = len(indices) == len(roles) and all(channels.equal(indices[0], index) for index in indices)
    apart = all(isinstance(role, Channels) and role.apart for role in roles)
    if len(sites) > 1 and not (same and apart):
        return None
    changed = frozenset[str]().union(*(role.changed for role in roles))
    # Where channels are mixed, as RoPE does, the first of them stands for all: enough to tell heads apart.
    alike = len(indices) == len(roles) and channels.fit(indices)
    index = functools.reduce(np.minimum, indices) if alike else None
    one = dataclasses.replace(first, changed=changed, index=index)
    return dataclasses.replace(one, sites=sites, apart=apart) if isinstance(one, Channels) else one
