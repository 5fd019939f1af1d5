"""Which sites make head products: query meets key, a softmax follows, its weights meet value, the output is projected.

What matters of query and key is the product of their kernels, head by head, as long as nothing but a change of layout,
a scalar or a bias lies between kernel and product; likewise of value and output. A rotation by position (RoPE) or a
norm on query and key is neither: it forbids the score product, and not that of the values. All of it shows in the
jaxpr: an `Activation` carries a role, and this file says what an equation makes of the roles of its operands.
"""

import dataclasses
from collections.abc import Sequence

from jax.extend import core

from lraqvit_jax.trace import views

FREE = (*views.LAYOUT, "slice", "dynamic_slice", "gather", "split", "concatenate")
"""Primitives that move channels and change none; "concatenate" where all parts are of one site."""
SUMS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "reduce_and", "reduce_or")


@dataclasses.dataclass(frozen=True)
class Channels:
    """The output of a site; `changed` are the primitives between it and here that did more than move channels."""

    site: str
    changed: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a product of query and key has become; `soft` once it went through an exponential."""

    query: Channels
    key: Channels
    head_dim: int
    soft: bool = False


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Values, added up by their scores."""

    scores: Scores
    value: Channels
    changed: frozenset[str] = frozenset()


Role = Channels | Scores | Mixed


@dataclasses.dataclass(frozen=True)
class Attention:
    """One attention block.

    Attributes:
        query: path of the site; that of key and value too, where the kernel is fused.
        key: likewise.
        value: likewise.
        output: path of the projection.
        head_dim: channels of a query's head.
        score_reason: why query and key make no score product; "" where they do.
        value_reason: likewise of value and output.
    """

    query: str
    key: str
    value: str
    output: str
    head_dim: int
    score_reason: str = ""
    value_reason: str = ""

    def __str__(self) -> str:
        names = list(dict.fromkeys((self.query, self.key, self.value, self.output)))
        score = f"no score product: {self.score_reason}" if self.score_reason else "score product"
        value = f"no value product: {self.value_reason}" if self.value_reason else "value product"
        return f"{', '.join(names)}, heads of {self.head_dim}: {score}; {value}"


def product(eqn: core.JaxprEqn, left: Role | None, right: Role | None) -> Role | None:
    """The role of a product of two activations."""
    if eqn.primitive.name != "dot_general":
        return None
    if isinstance(left, Channels) and isinstance(right, Channels):
        contracted = eqn.params["dimension_numbers"][0][0]
        size = 1
        for axis in contracted:
            size *= views.shape_of(eqn.invars[0])[axis]
        return Scores(left, right, size)
    for scores, value in ((left, right), (right, left)):
        if isinstance(scores, Scores) and scores.soft and isinstance(value, Channels):
            return Mixed(scores, value)
    return None


def of_site(role: Role | None, path: str) -> Attention | None:
    """The attention block whose projection is the site that reads this; None where it reads something else."""
    if not isinstance(role, Mixed):
        return None
    scores = role.scores
    return Attention(
        scores.query.site,
        scores.key.site,
        role.value.site,
        path,
        scores.head_dim,
        _reason(scores.query.changed | scores.key.changed),
        _reason(role.value.changed | role.changed),
    )


def _reason(changed: frozenset[str]) -> str:
    return f"{', '.join(sorted(changed))} between kernel and product" if changed else ""


def plain(name: str, roles: Sequence[Role | None], others: bool) -> Role | None:
    """The role of what a primitive makes of activations.

    Args:
        name: of the primitive.
        roles: of its activations.
        others: whether an operand is no activation and more than a scalar.
    """
    known = [role for role in roles if role is not None]
    if not known or name in SUMS:
        return None
    if isinstance(known[0], Scores):
        return dataclasses.replace(known[0], soft=known[0].soft or name in ("exp", "exp2"))
    if name in FREE and len(known) == len(roles):
        return _joined(known, frozenset())
    if name in ("add", "sub", "add_any") and len(known) < len(roles):
        return None  # of a stream that others add to
    scales = name in ("mul", "div", "neg") and len(roles) == 1 and not others
    return _joined(known, frozenset() if scales else frozenset([name]))


def _joined(roles: Sequence[Role], changed: frozenset[str]) -> Role | None:
    """One role of several that are of one site, or of one attention; None of others."""
    first = roles[0]
    if isinstance(first, Scores):
        return None
    plain_roles = {
        None if isinstance(role, Scores) else dataclasses.replace(role, changed=frozenset()) for role in roles
    }
    if len(plain_roles) > 1:
        return None
    earlier = (role.changed for role in roles if not isinstance(role, Scores))
    return dataclasses.replace(first, changed=changed.union(*earlier))
