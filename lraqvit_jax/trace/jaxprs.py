"""A function as its jaxpr, and what a jaxpr's equations call."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from lraqvit_jax.base.errors import UserError, reason, short

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Equations that call one function, and the name of its jaxpr."""


def leaf_paths(params: Any) -> dict[str, Any]:
    """The arrays of a tree by their path, "/" between the names; UserError for what is no array."""
    leaves = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise UserError(f"params has {short(repr(leaf))} at {path or 'its root'}, which is no array; leave it out.")
        leaves[path] = leaf
    return leaves


def traced(apply: Any, params: Any, batch: Any) -> tuple[core.ClosedJaxpr, Any]:
    """The jaxpr of `apply(params, batch)` and the tree of its outputs; UserError where it has side effects or fails.

    Its first inputs are the leaves of `params`, in their order, then come those of `batch`.
    """
    try:
        # A partial of its own: JAX remembers what it traced, and this may be to see whether that changes.
        closed, shape = jax.make_jaxpr(functools.partial(apply), return_shape=True)(params, batch)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The function cannot be traced with these params and this batch ({type(error).__name__}: {reason(error)})."
        ) from error
    if closed.jaxpr.effects:
        effects = ", ".join(sorted({type(effect).__name__ for effect in closed.jaxpr.effects}))
        raise UserError(f"The function has side effects ({effects}), which would be lost; give one without.")
    return closed, jax.tree.structure(shape)


def called(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence[Any]]:
    """The function that an equation of `CALLS` calls, and its constants."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())


class Scan(NamedTuple):
    """The operands of a scan's equation, or its outputs: what stays the same, is carried on, and is stacked."""

    constants: list[Any]
    carry: list[Any]
    stacked: list[Any]

    @classmethod
    def of(cls, eqn: core.JaxprEqn, operands: Sequence[Any]) -> "Scan":
        """Takes the operands apart."""
        first = eqn.params["num_consts"]
        second = first + eqn.params["num_carry"]
        return cls(list(operands[:first]), list(operands[first:second]), list(operands[second:]))


def rounds(eqn: core.JaxprEqn) -> list[int]:
    """The indices of a scan's rounds, in their order."""
    indices = range(eqn.params["length"])
    return list(reversed(indices) if eqn.params["reverse"] else indices)
