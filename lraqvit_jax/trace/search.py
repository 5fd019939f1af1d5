"""The walk along a jaxpr that finds the products of parameters with activations."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from lraqvit_jax.trace import attention, channels, meetings, product, roles, views
from lraqvit_jax.trace.attention import Attention
from lraqvit_jax.trace.jaxprs import CALLS, Scan, called, rounds
from lraqvit_jax.trace.meetings import Consumer, Read
from lraqvit_jax.trace.product import Product
from lraqvit_jax.trace.sites import Site, Sites, Skipped, Trail, Use
from lraqvit_jax.trace.views import Activation, Known, Mixed, Value, View, shape_of

ROUNDS = 16
"""Of a scan whose kernels are the same in all of them, at most, that are looked at one by one."""
TABLE = 2
"""Dimensions from which on a leaf that is in no product is listed."""


def of_jaxpr(closed: core.ClosedJaxpr, leaves: Mapping[str, Any], count: int) -> Sites:
    """The sites of a traced function of `leaves`, by path in the order of its inputs, and of `count` examples."""
    search = _Search()
    outputs = search.walk(closed.jaxpr, closed.consts, _inputs(closed, leaves), ())
    return search.result(leaves, outputs, count)


def uses(closed: core.ClosedJaxpr, leaves: Mapping[str, Any]) -> dict[Trail, Use]:
    """The products of a traced function alone."""
    search = _Search(followed=False)
    search.walk(closed.jaxpr, closed.consts, _inputs(closed, leaves), ())
    return search.uses


def _inputs(closed: core.ClosedJaxpr, leaves: Mapping[str, Any]) -> list[Value]:
    views_of_leaves = [View(path, tuple(leaf.shape)) for path, leaf in leaves.items()]
    return [*views_of_leaves, *[Activation(raw=True)] * (len(closed.jaxpr.invars) - len(views_of_leaves))]


class _Search:
    """A walk along a jaxpr; what it found so far. Unless `followed`, it does not ask what outputs of sites become."""

    def __init__(self, followed: bool = True) -> None:
        self.followed = followed
        self.uses: dict[Trail, Use] = {}
        self.inputs: dict[str, list[Activation]] = collections.defaultdict(list)
        self.blocked: dict[str, str] = {}
        self.skipped: list[Skipped] = []
        self.other_readers: dict[str, set[str]] = collections.defaultdict(set)
        self.biases: dict[str, list[View]] = collections.defaultdict(list)
        self.bias_readers: dict[str, int] = collections.Counter()
        self.attention: list[Attention] = []
        self.consumers: dict[str, set[Consumer]] = collections.defaultdict(set)
        self.units: dict[str, list[Read]] = collections.defaultdict(list)
        self.streams: set[str] = set()  # sites whose output is added to a stream that does not depend on it

    def walk(
        self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Value], trail: Trail, blocked: str = ""
    ) -> list[Value]:
        """Values of the outputs. `blocked` says why no product inside can be a site."""
        env: dict[core.Var, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        env |= {var: _constant(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}

        def read(atom: Any) -> Value:
            return _constant(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for number, eqn in enumerate(jaxpr.eqns):
            outputs = self._equation(eqn, [read(atom) for atom in eqn.invars], (*trail, number), blocked)
            env |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: core.JaxprEqn, values: list[Value], trail: Trail, blocked: str) -> list[Value]:
        name = eqn.primitive.name
        if name in CALLS and CALLS[name] in eqn.params:
            return self.walk(*called(eqn), values, trail, blocked)
        if name == "scan":
            return self._scan(eqn, values, trail, blocked)
        if name == "cond":
            branches = [
                self.walk(one.jaxpr, one.consts, values[1:], (*trail, number), "is inside a conditional")
                for number, one in enumerate(eqn.params["branches"])
            ]
            self._lost([*values, *itertools.chain(*branches)], name)
            return [views.joined([values[0], *results], name) for results in zip(*branches, strict=True)]
        if name in product.PRODUCTS:
            return [self._product(eqn, values, trail, blocked)]
        if any(core.jaxprs_in_params(eqn.params)):
            whole = views.joined(values, name)
            self._lost(values, name)
            self._skip(values, f"is inside of {name}, which is not looked into")
            return [whole] * len(eqn.outvars)
        return self._plain(eqn, values)

    def _scan(self, eqn: core.JaxprEqn, values: list[Value], trail: Trail, blocked: str) -> list[Value]:
        """A scan, layer after layer: the parts of a stacked leaf are kernels of their own."""
        given, body, outputs = Scan.of(eqn, values), eqn.params["jaxpr"], list[list[Value]]()
        carry = [Activation(raw=True) if isinstance(value, Known) else value for value in given.carry]
        layers = rounds(eqn)
        seen = layers if any(isinstance(value, View) for value in given.stacked) else layers[:ROUNDS]
        self._lost(given.stacked, "scan")
        for index in seen:
            parts = [_element(value, index) for value in given.stacked]
            results = self.walk(body.jaxpr, body.consts, [*given.constants, *carry, *parts], (*trail, index), blocked)
            carry, rest = results[: len(carry)], results[len(carry) :]
            self._lost(rest, "scan")
            outputs.append(rest)
        end, last = len(trail), seen[-1] if seen else 0
        same = {key: use for key, use in self.uses.items() if key[: end + 1] == (*trail, last)}
        for index in layers[len(seen) :]:
            self.uses |= {(*trail, index, *key[end + 1 :]): use for key, use in same.items()}
        if not outputs:
            return [*carry, *[views.joined(values, "scan")] * (len(eqn.outvars) - len(carry))]
        return [*carry, *(views.joined(list(ys), "scan") for ys in zip(*outputs, strict=True))]

    def _product(self, eqn: core.JaxprEqn, values: list[Value], trail: Trail, blocked: str) -> Value:
        acts = [isinstance(value, Activation) for value in values]
        if sum(acts) != 1:
            for value in values:
                self._read_elsewhere(value, eqn.primitive.name)
            whole = views.joined(values, eqn.primitive.name)
            if isinstance(whole, Activation) and self.followed:
                return self._meeting(eqn, values, whole)
            return whole
        side = int(acts[0])
        weight, act = values[side], values[1 - side]
        found = product.of(eqn, side)
        if isinstance(weight, Known):
            self._lost([act], eqn.primitive.name)
            return views.joined(values, eqn.primitive.name)
        if not isinstance(weight, View) or not isinstance(act, Activation) or isinstance(found, str):
            why = f"is changed by {weight.by} before it multiplies" if isinstance(weight, Mixed) else str(found)
            self.skipped.append(Skipped(tuple(sorted(views.leaves_of(weight))), why, _macs(eqn, side)))
            self._read_elsewhere(weight, eqn.primitive.name)
            self._lost([act], eqn.primitive.name)
            return views.joined(values, eqn.primitive.name)
        if (places := product.kernels(eqn, side)) != [()]:
            return self._side_by_side(eqn, weight, act, found, places, trail, blocked)
        self._use(trail, Use(weight.path, found, weight, eqn), act, blocked)
        role = self._read(act.role, weight.path, found, eqn) if self.followed else None
        return Activation(origin=weight.path, sites=act.sites | {weight.path}, role=role)

    def _use(self, trail: Trail, use: Use, act: Activation, blocked: str) -> None:
        self.uses[trail] = use
        self.inputs[use.path].append(act)
        if blocked:
            self.blocked[use.path] = blocked

    def _side_by_side(
        self,
        eqn: core.JaxprEqn,
        weight: View,
        act: Activation,
        found: Product,
        places: Sequence[tuple[int, ...]],
        trail: Trail,
        blocked: str,
    ) -> Activation:
        """A product of several kernels, each with its own part of the activation: a site each."""
        axes = eqn.params["dimension_numbers"][1][found.side]
        self._lost([act], "kernels side by side")
        paths = set[str]()
        for number, place in enumerate(places):
            view = views.at(weight, axes, place)
            self._use((*trail, number), Use(view.path, found, view, eqn), act, blocked)
            paths.add(view.path)
        return Activation(sites=act.sites | paths)

    def _read(self, role: Any, path: str, found: Product, eqn: core.JaxprEqn) -> roles.Channels:
        """Notes what a site reads of other sites; the role of its output."""
        rows = channels.flat(getattr(role, "index", None), found.inner, shape_of(eqn.invars[1 - found.side]))
        block = attention.of_site(role, path, rows)
        if block is not None:
            self.consumers[block.value].add(("output", path))
            if not any(block.same_as(other) for other in self.attention):
                self.attention.append(block)
        elif isinstance(role, roles.Channels):
            for site in role.sites:
                self.consumers[site].add(("site", path))
            self.units[path].append(Read(role, rows))
        shape = [1] * len(shape_of(eqn.outvars[0]))
        for axis in found.outer:
            shape[axis] = shape_of(eqn.outvars[0])[axis]
        return roles.Channels(frozenset([path]), np.arange(found.features_out).reshape(shape))

    def _meeting(self, eqn: core.JaxprEqn, values: Sequence[Value], whole: Activation) -> Activation:
        """A product of two activations."""
        left, right = (value.role if isinstance(value, Activation) else None for value in values)
        made = attention.product(eqn, left, right)
        if made is None:
            self._lost(values, eqn.primitive.name)
        elif isinstance(made, roles.Scores):
            for role in (made.query, made.key):
                self.consumers[role.site].add(("scores", eqn.primitive.name))
        elif isinstance(made, roles.Mixed):
            self.consumers[made.value.site].add(("values", eqn.primitive.name))
        return dataclasses.replace(whole, role=made)

    def _lost(self, values: Sequence[Value], by: str) -> None:
        """Notes that outputs of sites went where nobody follows them."""
        for value in values:
            if isinstance(value, Activation) and value.role is not None:
                for site in value.role.sites:
                    self.consumers[site].add(("other", by))

    def _plain(self, eqn: core.JaxprEqn, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if len(eqn.outvars) == 1 and (view := views.moved(eqn, values)) is not None:
            return [view]
        if all(isinstance(value, Known) for value in values):
            return _computed(eqn, values)
        acts = [value for value in values if isinstance(value, Activation)]
        whole = self._with_roles(eqn, values, acts)
        if len(acts) == 1 and acts[0].origin and isinstance(whole[0], Activation):
            others = [value for value in values if value is not acts[0]]
            if name in views.LAYOUT and not others:
                return [dataclasses.replace(whole[0], origin=acts[0].origin)]
            if name == "add" and isinstance(others[0], View | Mixed | Known):
                if isinstance(others[0], View):
                    self.biases[acts[0].origin].append(others[0])
                    self.bias_readers[others[0].path] += 1
                    return [dataclasses.replace(whole[0], origin=acts[0].origin, role=acts[0].role)]
                self._read_elsewhere(others[0], name)
                nothing = isinstance(others[0], Known) and others[0].value is not None and not np.any(others[0].value)
                role = acts[0].role if nothing else getattr(whole[0], "role", None)
                return [dataclasses.replace(whole[0], origin=acts[0].origin, role=role)]
        if name in ("add", "sub") and len(acts) > 1:
            one, other = acts
            self.streams |= {act.origin for act, rest in ((one, other), (other, one)) if act.origin not in rest.sites}
        for value in values:
            self._read_elsewhere(value, name)
        return whole

    def _with_roles(self, eqn: core.JaxprEqn, values: Sequence[Value], acts: Sequence[Activation]) -> list[Value]:
        """What a primitive makes of its operands, with the roles."""
        whole = views.joined(list(values), eqn.primitive.name)
        if not isinstance(whole, Activation) or not self.followed:
            return [whole] * len(eqn.outvars)
        others = [
            (value, atom) for value, atom in zip(values, eqn.invars, strict=True) if not isinstance(value, Activation)
        ]
        constants = [value.value if isinstance(value, Known) else None for value, _ in others]
        scalars = all(math.prod(views.shape_of(atom)) == 1 for _, atom in others)
        made = attention.plain(eqn, [act.role for act in acts], constants, scalars)
        left = frozenset[str]().union(*(role.sites for role in made if role is not None))
        for act in acts:
            if act.role is not None:
                for site in act.role.sites - left:
                    self.consumers[site].add(("other", eqn.primitive.name))
        return [dataclasses.replace(whole, role=role) for role in made]

    def _read_elsewhere(self, value: Value, by: str) -> None:
        """Notes who reads a leaf; of what is made of leaves nothing new, since who made it read them."""
        if isinstance(value, View):
            self.other_readers[value.leaf].add(by)

    def _skip(self, values: Sequence[Value], why: str) -> None:
        leaves = sorted(frozenset[str]().union(*map(views.leaves_of, values)))
        if leaves:
            self.skipped.append(Skipped(tuple(leaves), why))
        for value in values:
            self._read_elsewhere(value, why)

    def result(self, leaves: Mapping[str, Any], outputs: Sequence[Value], examples: int) -> Sites:
        """What was found, once all of the function is read."""
        self._lost(outputs, "the output")
        for value in outputs:
            if not isinstance(value, Activation):
                self._read_elsewhere(value, "the output")
        uses = collections.defaultdict(list)
        for use in self.uses.values():
            uses[use.path].append(use)
        kernels = {use.view.leaf for use in self.uses.values()}
        for added in self.biases.values():
            for view in added:
                if view.leaf in kernels:
                    self._read_elsewhere(view, "add")
        ends = {value.origin for value in outputs if isinstance(value, Activation) and value.origin}
        upstream = frozenset[str]().union(*(act.sites for acts in self.inputs.values() for act in acts))
        sites, biases = [], {}
        for path, of_site in uses.items():
            first = of_site[0]
            rows = sum(use.product.rows for use in of_site) // len(of_site)
            tokens = max(1, rows // examples)
            raw = all(act.raw for act in self.inputs[path])
            last = path in ends or (path not in upstream and (tokens == 1 or path not in self.streams))
            bias = self._bias(path, of_site, leaves)
            if bias is not None:
                biases[path] = bias
            sites.append(
                Site(
                    path,
                    first.view.leaf,
                    first.product.features_in,
                    first.product.features_out,
                    tokens,
                    "embed" if raw else "head" if last else "mlp",
                    bias.path if bias else "",
                    len(of_site),
                    self._reason(path, of_site, leaves),
                )
            )
        stuck = {site.leaf: site.path for site in sites if site.reason}
        sites = [
            site
            if site.reason or site.leaf not in stuck
            else dataclasses.replace(site, reason=f"is of one leaf with {stuck[site.leaf]}, which stays")
            for site in sites
        ]
        listed = {leaf for one in self.skipped for leaf in one.leaves} | {site.leaf for site in sites}
        listed |= {view.leaf for added in self.biases.values() for view in added}
        for leaf, value in leaves.items():
            if leaf not in listed and len(value.shape) >= TABLE and min(value.shape) > 1:
                readers = ", ".join(sorted(self.other_readers.get(leaf, ()))) or "nothing"
                self.skipped.append(Skipped((leaf,), f"is in no product, but read by {readers}"))
        total = sum(math.prod(leaf.shape) for leaf in leaves.values())
        skipped = tuple(one._replace(macs=one.macs // examples) for one in self.skipped)
        found = Sites(tuple(sites), skipped, total, dict(self.uses), biases)
        return dataclasses.replace(
            found,
            attention=meetings.attention(found, self.attention, self.consumers),
            hidden=meetings.hidden(found, self.units, self.consumers),
        )

    def _reason(self, path: str, uses: Sequence[Use], leaves: Mapping[str, Any]) -> str:
        leaf = uses[0].view.leaf
        if path in self.blocked:
            return self.blocked[path]
        if len(uses) > 1:
            shape = leaves[leaf].shape
            kernels = [_order(use, shape) for use in uses]
            if any(one is None or kernels[0] is None or not np.array_equal(one, kernels[0]) for one in kernels):
                return "is used in products of different layouts"
        if self.other_readers.get(leaf):
            return f"is also read by {', '.join(sorted(self.other_readers[leaf]))}"
        return ""

    def _bias(self, path: str, uses: Sequence[Use], leaves: Mapping[str, Any]) -> View | None:
        """The one view that is added to every output of a site and to nothing else, an entry for each channel."""
        added = self.biases.get(path, [])
        if len(added) != len(uses) or len({view.path for view in added}) != 1 or not added[0].moves:
            return None
        view, n = added[0], uses[0].product.features_out
        elsewhere = view.leaf in self.other_readers or self.bias_readers[view.path] != len(uses)
        return None if elsewhere or math.prod(view.shape) != n else view


def _constant(value: Any) -> Known:
    return Known(np.asarray(value)) if not _is_key(value) and views.is_small(np.shape(value)) else Known()


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _element(value: Value, index: int) -> Value:
    """What a round of a scan reads of a stack."""
    if isinstance(value, View):
        return views.layer(value, index)
    if isinstance(value, Activation):
        return Activation(raw=value.raw, sites=value.sites)
    return Known() if isinstance(value, Known) else value


def _computed(eqn: core.JaxprEqn, values: Sequence[Value]) -> list[Value]:
    """A small constant of small constants; of others, that they are constants."""
    known = [value.value for value in values if isinstance(value, Known)]
    small = all(views.is_small(var.aval.shape) for var in eqn.outvars if hasattr(var.aval, "shape"))
    if not small or any(value is None for value in known) or any(core.jaxprs_in_params(eqn.params)):
        return [Known()] * len(eqn.outvars)
    try:
        with jax.ensure_compile_time_eval():
            result = eqn.primitive.bind(*known, **eqn.params)
    except (TypeError, ValueError, NotImplementedError):
        return [Known()] * len(eqn.outvars)
    return [_constant(value) for value in (result if eqn.primitive.multiple_results else [result])]


def _macs(eqn: core.JaxprEqn, side: int) -> int:
    """Multiply-accumulates: an output has one for each entry of the kernel that it reads."""
    weight, out = views.shape_of(eqn.invars[side]), views.shape_of(eqn.outvars[0])
    if eqn.primitive.name == "dot_general":
        contracted = eqn.params["dimension_numbers"][0][side]
        return math.prod(out) * math.prod(weight[axis] for axis in contracted)
    features = weight[eqn.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(out) * math.prod(weight) // features


def _order(use: Use, shape: tuple[int, ...]) -> np.ndarray | None:
    """Which entry of the leaf each entry of the kernel is; None where they are changed, not moved alone."""
    if not use.view.moves:
        return None
    return np.asarray(use.product.arrange(use.view.of(np.arange(math.prod(shape)).reshape(shape))))
