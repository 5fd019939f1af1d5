"""Sites: the places of any JAX function where a parameter meets an activation in a product, found in its jaxpr."""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from lraqvit_jax.base.errors import UserError, reason, short
from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.trace import attention, product, views
from lraqvit_jax.trace.attention import Attention
from lraqvit_jax.trace.product import Product
from lraqvit_jax.trace.views import Activation, Known, Mixed, Value, View

Trail = tuple[int, ...]
"""Where an equation is: its number, behind those of the equations that it is inside of, and of the layer of a scan."""
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
ROUNDS = 16
"""Of a scan whose kernels are the same in all of them, at most, that are looked at one by one."""
TABLE = 2
"""Dimensions from which on a leaf that is in no product is listed."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A place where a leaf, or a part of one, is the kernel of a product.

    Attributes:
        path: of the leaf, with the part of it such as "[3]".
        leaf: path of the leaf, "/" between the names.
        features_in: m.
        features_out: n.
        tokens: rows that an example of the batch gives.
        kind: "embed" where no parameter has touched the input, "head" where the output is that of the function, and
            "mlp" else.
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
    """

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    parameters: int
    uses: Mapping[Trail, Use]
    biases: Mapping[str, View]
    attention: tuple[Attention, ...] = ()

    def __str__(self) -> str:
        """A line for each site, and for what is none."""
        lines = [
            f"{site.path}  {site.features_in} x {site.features_out}, {site.tokens} tokens, {site.kind}"
            + (f"; {site.reason}" if site.reason else "")
            for site in self.sites
        ]
        lines += [f"attention of {block}" for block in self.attention]
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


def called(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence[Any]]:
    """The function that an equation of `CALLS` calls, and its constants."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())


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


def find(apply: Any, params: Any, batch: Any) -> Sites:
    """Finds every place of a function where a parameter meets an activation in a product.

    Args:
        apply: a pure function of `params` and `batch`; its outputs are any tree of arrays.
        params: a tree of arrays.
        batch: an array or a tree of them, with examples along the first axes.

    Raises:
        UserError: a function with side effects or with outputs that differ between calls, a batch or parameters that
            it does not take.
    """
    leaves = leaf_paths(params)
    closed, _ = traced(apply, params, batch)
    again, _ = traced(apply, params, batch)
    if str(closed.jaxpr) != str(again.jaxpr) or not _same(closed.consts, again.consts):
        raise UserError(
            "The function gives another computation each time it is called (a seed or a counter of its own?); make "
            "what changes an argument."
        )
    found = of_jaxpr(closed, leaves, examples(batch))
    _found.insert(0, (apply, found))
    del _found[REMEMBERED:]
    return found


_found: list[tuple[Any, Sites]] = []
REMEMBERED = 4
"""Functions whose sites are remembered, so that `rewrite` needs no batch."""


def last_found(apply: Any) -> Sites | None:
    """The sites that `find` last found in a function; None where it did not, or not lately."""
    return next((sites for function, sites in _found if function == apply), None)


def examples(batch: Any) -> int:
    """How many examples a batch has; UserError where its arrays do not agree."""
    arrays = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    counts = {shape[0] for shape in arrays if shape}
    if len(counts) != 1 or not all(arrays) or 0 in counts:
        raise UserError(
            f"batch has arrays of the shapes {', '.join(map(str, arrays)) or 'none'}; give arrays whose first axis is "
            "that of the examples, as many in each."
        )
    return int(counts.pop())


def _same(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(ones) == len(others) and all(
        one is other or np.asarray(one).tobytes() == np.asarray(other).tobytes()
        for one, other in zip(ones, others, strict=True)
    )


def of_jaxpr(closed: core.ClosedJaxpr, leaves: Mapping[str, Any], count: int) -> Sites:
    """The sites of a traced function of `leaves`, by path in the order of its inputs, and of `count` examples."""
    search = _Search()
    outputs = search.walk(closed.jaxpr, closed.consts, _inputs(closed, leaves), ())
    return search.result(leaves, outputs, count)


def uses(closed: core.ClosedJaxpr, leaves: Mapping[str, Any]) -> dict[Trail, Use]:
    """The products of a traced function alone."""
    search = _Search()
    search.walk(closed.jaxpr, closed.consts, _inputs(closed, leaves), ())
    return search.uses


def _inputs(closed: core.ClosedJaxpr, leaves: Mapping[str, Any]) -> list[Value]:
    views_of_leaves = [View(path, tuple(leaf.shape)) for path, leaf in leaves.items()]
    return [*views_of_leaves, *[Activation(raw=True)] * (len(closed.jaxpr.invars) - len(views_of_leaves))]


class _Search:
    """A walk along a jaxpr; what it found so far."""

    def __init__(self) -> None:
        self.uses: dict[Trail, Use] = {}
        self.inputs: dict[str, list[Activation]] = collections.defaultdict(list)
        self.blocked: dict[str, str] = {}
        self.skipped: list[Skipped] = []
        self.other_readers: dict[str, set[str]] = collections.defaultdict(set)
        self.biases: dict[str, list[View]] = collections.defaultdict(list)
        self.bias_readers: dict[str, int] = collections.Counter()
        self.attention: list[Attention] = []

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
            return [views.joined([values[0], *results], name) for results in zip(*branches, strict=True)]
        if name in product.PRODUCTS:
            return [self._product(eqn, values, trail, blocked)]
        if any(core.jaxprs_in_params(eqn.params)):
            whole = views.joined(values, name)
            self._skip(values, f"is inside of {name}, which is not looked into")
            return [whole] * len(eqn.outvars)
        return self._plain(eqn, values)

    def _scan(self, eqn: core.JaxprEqn, values: list[Value], trail: Trail, blocked: str) -> list[Value]:
        """A scan, layer after layer: the parts of a stacked leaf are kernels of their own."""
        params = eqn.params
        constants, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, carry, stacked = values[:constants], values[constants:carried], values[carried:]
        body, layers, outputs = params["jaxpr"], range(params["length"]), list[list[Value]]()
        carry = [Activation(raw=True) if isinstance(value, Known) else value for value in carry]
        rounds = layers if any(isinstance(value, View) for value in stacked) else layers[:ROUNDS]
        for index in reversed(rounds) if params["reverse"] else rounds:
            parts = [views.layer(value, index) if isinstance(value, View) else _element(value) for value in stacked]
            results = self.walk(body.jaxpr, body.consts, [*consts, *carry, *parts], (*trail, index), blocked)
            carry, rest = results[: params["num_carry"]], results[params["num_carry"] :]
            outputs.append(rest)
        end, last = len(trail), rounds[-1] if rounds else 0
        same = {key: use for key, use in self.uses.items() if key[: end + 1] == (*trail, last)}
        for index in layers[len(rounds) :]:
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
            if isinstance(whole, Activation):
                roles = [value.role if isinstance(value, Activation) else None for value in values]
                return dataclasses.replace(whole, role=attention.product(eqn, *roles))
            return whole
        side = int(acts[0])
        weight, act = values[side], values[1 - side]
        found = product.of(eqn, side)
        if isinstance(weight, Known):
            return views.joined(values, eqn.primitive.name)
        if not isinstance(weight, View) or not isinstance(act, Activation) or isinstance(found, str):
            why = f"is changed by {weight.by} before it multiplies" if isinstance(weight, Mixed) else str(found)
            self.skipped.append(Skipped(tuple(sorted(views.leaves_of(weight))), why, _macs(eqn, side)))
            self._read_elsewhere(weight, eqn.primitive.name)
            return views.joined(values, eqn.primitive.name)
        self.uses[trail] = Use(weight.path, found, weight, eqn)
        self.inputs[weight.path].append(act)
        if blocked:
            self.blocked[weight.path] = blocked
        if (block := attention.of_site(act.role, weight.path)) is not None and block not in self.attention:
            self.attention.append(block)
        role = attention.Channels(weight.path)
        return Activation(origin=weight.path, sites=act.sites | {weight.path}, role=role)

    def _plain(self, eqn: core.JaxprEqn, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if len(eqn.outvars) == 1 and (view := views.moved(eqn, values)) is not None:
            return [view]
        if all(isinstance(value, Known) for value in values):
            return _computed(eqn, values)
        acts = [value for value in values if isinstance(value, Activation)]
        whole = self._with_role(eqn, values, acts)
        if len(acts) == 1 and acts[0].origin and isinstance(whole, Activation):
            others = [value for value in values if value is not acts[0]]
            if name in views.LAYOUT and not others:
                return [dataclasses.replace(whole, origin=acts[0].origin)]
            if name == "add" and isinstance(others[0], View | Mixed | Known):
                if isinstance(others[0], View):
                    self.biases[acts[0].origin].append(others[0])
                    self.bias_readers[others[0].path] += 1
                else:
                    self._read_elsewhere(others[0], name)
                return [dataclasses.replace(whole, origin=acts[0].origin, role=acts[0].role)]
        for value in values:
            self._read_elsewhere(value, name)
        return [whole] * len(eqn.outvars)

    def _with_role(self, eqn: core.JaxprEqn, values: Sequence[Value], acts: Sequence[Activation]) -> Value:
        """What a primitive makes of its operands, with its role in an attention block."""
        whole = views.joined(list(values), eqn.primitive.name)
        if not isinstance(whole, Activation):
            return whole
        others = any(
            not isinstance(value, Activation) and math.prod(views.shape_of(atom)) != 1
            for value, atom in zip(values, eqn.invars, strict=True)
        )
        role = attention.plain(eqn.primitive.name, [act.role for act in acts], others)
        return dataclasses.replace(whole, role=role)

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
            last = path in ends or (tokens == 1 and path not in upstream)
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
        return Sites(tuple(sites), skipped, total, dict(self.uses), biases, tuple(self.attention))

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


def _element(value: Value) -> Value:
    """Of one round of a scan."""
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
