"""A function again, with forms in the places that `products.find` found.

The function is traced anew whenever it is called, so that batches may have other sizes, and its jaxpr is interpreted:
equations of sites call what their form computes, all others are bound as they are. Our own interpreter on
`jax.extend.core`, and not an array type that is dispatched on (quax): it needs to look into scans, remat and custom
rules, where one kernel is of many layers, and to drop what made the kernel's layout.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.forms import pivoted
from lraqvit_jax.forms.dense import dense
from lraqvit_jax.forms.pair import Pair, low_rank, reparam
from lraqvit_jax.forms.quantized import quantized
from lraqvit_jax.lowrank import pivot, svd
from lraqvit_jax.plan.check import check_layer
from lraqvit_jax.plan.cost import kernel_shapes
from lraqvit_jax.plan.records import DENSE, LayerPlan, LinearInfo, Plan
from lraqvit_jax.trace import jaxprs, parts, product, products, search
from lraqvit_jax.trace.parts import Part
from lraqvit_jax.trace.sites import Sites, Trail, Use
from lraqvit_jax.trace.views import dtype_of, shape_of

FORMS = {"dense": dense, "low_rank": low_rank, "reparam": reparam}
Layer = dict[str, Any]


class _Gone:
    """In place of a leaf that forms stand for, and of whatever its layout was made into."""


GONE = _Gone()


@dataclasses.dataclass(frozen=True, eq=False)
class Rewritten:
    """A function of `{"leaves": {path: array}, "sites": {path: {name: array}}}` and a batch.

    Attributes:
        apply: the function as it was.
        tree: of its parameters.
        specs: shape and dtype of its leaves, by path.
        plan: of the sites that have a form of their own, dense ones too where others share their leaf; of a site whose
            channels have several, by their name below its path.
        infos: shapes of what the plan has, as it leaves them, without biases.
        parts: of each of these sites, the paths in the plan.
    """

    apply: Callable[..., Any]
    tree: Any
    specs: Mapping[str, jax.ShapeDtypeStruct]
    plan: Plan
    infos: Mapping[str, LinearInfo]
    parts: Mapping[str, tuple[str, ...]]

    def __call__(self, params: Mapping[str, Any], batch: Any) -> Any:
        if not self.plan:
            return self.apply(jax.tree.unflatten(self.tree, [params["leaves"][path] for path in self.specs]), batch)
        return self.observed(params, batch)[0]

    def observed(
        self,
        params: Mapping[str, Any],
        batch: Any,
        added: Mapping[str, Any] | None = None,
        watched: Sequence[str] = (),
        outputs_of_sites: bool = False,
    ) -> tuple[Any, dict[str, list[Any]]]:
        """The outputs, and what the products of `watched` sites read: rows (rows, m), a list entry for each call; or,
        with `outputs_of_sites`, what they give, (rows, n).

        Args:
            params: as of a call.
            batch: likewise.
            added: to the rows (rows, n) that a site gives, by path, for each call: zeros to differentiate by.
            watched: paths of sites.
        """
        originals = jax.tree.unflatten(self.tree, list(self.specs.values()))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), batch)
        closed, tree = jaxprs.traced(self.apply, originals, shapes)
        uses = search.uses(closed, self.specs)
        run = _Run(self, params["sites"], uses, added or {}, frozenset(watched), outputs_of_sites)
        leaves = [params["leaves"].get(path, GONE) for path in self.specs]
        outputs = run.evaluate(closed.jaxpr, closed.consts, [*leaves, *jax.tree.leaves(batch)], ())
        return jax.tree.unflatten(tree, outputs), run.seen


class _Run:
    """One evaluation of a jaxpr."""

    def __init__(
        self,
        function: Rewritten,
        sites: Mapping[str, Layer],
        uses: Mapping[Trail, Use],
        added: Mapping[str, Any],
        watched: frozenset[str],
        outputs_of_sites: bool,
    ) -> None:
        self.function, self.sites, self.added, self.watched = function, sites, added, watched
        self.outputs_of_sites = outputs_of_sites
        self.every = uses
        self.uses = {trail: use for trail, use in uses.items() if use.path in function.parts or use.path in watched}
        self.within = {trail[:end] for trail in self.uses for end in range(1, len(trail))}
        self.seen: dict[str, list[Any]] = {path: [] for path in watched}

    def evaluate(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], trail: Trail) -> list[Any]:
        env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else env[atom]

        for number, eqn in enumerate(jaxpr.eqns):
            outputs = self._equation(jaxpr, eqn, [read(atom) for atom in eqn.invars], (*trail, number))
            env |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, jaxpr: core.Jaxpr, eqn: core.JaxprEqn, values: list[Any], trail: Trail) -> list[Any]:
        if trail in self.uses:
            return [self._site(self.uses[trail], eqn, values)]
        if trail in self.within:
            inside = {"scan": self._scan, "dot_general": self._side_by_side}.get(eqn.primitive.name, self._call)
            return inside(eqn, values, trail)
        if any(value is GONE for value in values):
            return [GONE] * len(eqn.outvars)
        pairs = zip(eqn.invars, values, strict=True)
        inputs = {atom: value for atom, value in pairs if not isinstance(atom, core.Literal)}
        alone = jaxpr.replace(constvars=[], invars=list(inputs), outvars=eqn.outvars, eqns=[eqn])
        return list(core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*inputs.values()))

    def _site(self, use: Use, eqn: core.JaxprEqn, values: list[Any]) -> Any:
        found, path = use.product, use.path
        rows = found.read(values[1 - found.side])
        with _precision(eqn):
            if path in self.function.parts:
                y = self._parts(path, rows, found.features_out)
            else:
                y = dense({"kernel": found.arrange(values[found.side])}, rows)
        if path in self.added:
            y = y + self.added[path][len(self.seen[path])]
        if path in self.watched:
            self.seen[path].append(y if self.outputs_of_sites else rows)
        return found.write(y).astype(dtype_of(eqn.outvars[0]))

    def _side_by_side(self, eqn: core.JaxprEqn, values: list[Any], trail: Trail) -> list[Any]:
        """The product of several kernels, each with its own part of the activation."""
        axes, outputs = eqn.params["dimension_numbers"][1], list[Any]()
        side = self.every[*trail, 0].product.side
        for number, place in enumerate(product.kernels(eqn, side)):
            operands = [
                value if value is GONE else product.one_of(value, of_one, place)
                for value, of_one in zip(values, axes, strict=True)
            ]
            outputs.append(self._site(self.every[*trail, number], eqn, operands))
        return [jnp.stack(outputs).reshape(shape_of(eqn.outvars[0]))]

    def _parts(self, path: str, rows: Any, count: int) -> Any:
        """What the parts of a site give, together."""
        names, function = self.function.parts[path], self.function
        layers = [self.sites[name] for name in names]
        outputs = [
            _computed(layer, parts.read(layer, rows), function.plan[name], function.infos[name])
            for name, layer in zip(names, layers, strict=True)
        ]
        return parts.together(layers, outputs, count)

    def _call(self, eqn: core.JaxprEqn, values: list[Any], trail: Trail) -> list[Any]:
        """One function: computed again in the backward pass where it was; else as if it stood here."""
        jaxpr, consts = jaxprs.called(eqn)
        if eqn.primitive.name not in ("remat2", "checkpoint") or self.watched:
            return self.evaluate(jaxpr, consts, values, trail)
        there = [index for index, value in enumerate(values) if value is not GONE]

        def function(*given: Any) -> list[Any]:
            inputs = list[Any](values)
            for index, value in zip(there, given, strict=True):
                inputs[index] = value
            return self.evaluate(jaxpr, consts, inputs, trail)

        again = jax.checkpoint(function, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"])
        return list(again(*(values[index] for index in there)))

    def _scan(self, eqn: core.JaxprEqn, values: list[Any], trail: Trail) -> list[Any]:
        """Layer after layer, each with the form of its own."""
        given, body, outputs = jaxprs.Scan.of(eqn, values), eqn.params["jaxpr"], dict[int, list[Any]]()
        carry, rounds = given.carry, jaxprs.rounds(eqn)
        if not self.watched and len({self._paths((*trail, index)) for index in rounds}) == 1:
            return self._loop(eqn, given, trail)
        for index in rounds:
            parts = [value if value is GONE else value[index] for value in given.stacked]
            results = self.evaluate(body.jaxpr, body.consts, [*given.constants, *carry, *parts], (*trail, index))
            carry, outputs[index] = results[: len(carry)], results[len(carry) :]
        stacks = zip(*(outputs[index] for index in sorted(rounds)), strict=True)
        return [*carry, *(jnp.stack(ys) for ys in stacks)]

    def _paths(self, trail: Trail) -> frozenset[tuple[Trail, str]]:
        """The sites behind a trail, with the rest of theirs."""
        end = len(trail)
        return frozenset((key[end:], use.path) for key, use in self.uses.items() if key[:end] == trail)

    def _loop(self, eqn: core.JaxprEqn, given: jaxprs.Scan, trail: Trail) -> list[Any]:
        """A scan whose rounds have the same kernels."""
        body, count = eqn.params["jaxpr"], len(given.carry)

        def step(carry: list[Any], parts: list[Any]) -> tuple[list[Any], list[Any]]:
            results = self.evaluate(body.jaxpr, body.consts, [*given.constants, *carry, *parts], (*trail, 0))
            return results[:count], results[count:]

        options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        carry, outputs = jax.lax.scan(step, given.carry, given.stacked, **options)
        return [*carry, *outputs]


def _computed(weights: Layer, rows: Any, layer: LayerPlan, info: LinearInfo) -> Any:
    """What a form makes of rows (rows, m)."""
    if layer.form == "quantized":
        kernels = {name: shape[0] for name, shape in kernel_shapes(info, layer).items()}
        return quantized(weights, rows.astype(jnp.float32), layer, kernels)
    form = pivoted.pivoted(layer.basis, layer.rank) if layer.basis else FORMS[layer.form]
    return form(weights, rows)


def _precision(eqn: core.JaxprEqn) -> Any:
    """That of the equation; where it has none, whatever holds around it."""
    precision: Any = eqn.params.get("precision")
    precision = precision[0] if isinstance(precision, tuple) else precision
    if isinstance(precision, jax.lax.DotAlgorithmPreset):
        return jax.default_matmul_precision(precision.name)
    named = isinstance(precision, jax.lax.Precision)
    return jax.default_matmul_precision(precision.name.lower()) if named else contextlib.nullcontext()


def rewrite(
    apply: Callable[..., Any],
    params: Any,
    plan: Plan,
    sites: Sites | None = None,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Rewritten, dict[str, Any]]:
    """A function with forms in place of kernels.

    Args:
        apply: pure, of `params` and a batch.
        params: its tree of arrays.
        plan: forms by site path; a site without one stays as it is.
        sites: of `find`; None takes those that were last found in this function.
        layers: `{"u", "v", "bias", ...}` of sites, as decompositions make them; of others, pairs by truncated SVD.

    Returns:
        the function of new parameters and a batch, and the parameters.

    Raises:
        UserError: a function that was not searched yet, a path that is no site, a site that cannot be compressed, a
            rank above the break-even.
    """
    sites = products.last_found(apply) if sites is None else sites
    if sites is None:
        raise UserError("The places of this function are not known; call find(apply, params, batch) first.")
    _check(plan, sites)
    leaves = jaxprs.leaf_paths(params)
    made, biases = list[Part](), dict[str, Any]()
    for path, entry in plan.items():
        layer = dict((layers or {}).get(path, {})) or form_of(kernel_of(sites, path, leaves), entry)
        if "bias" in layer:
            biases[path] = layer.pop("bias")
        made.append(parts.of_site(sites[path], entry, layer))
    return of_parts(apply, params, [part for part in made if not parts.untouched(part)], biases, sites)


def of_parts(
    apply: Callable[..., Any], params: Any, made: Sequence[Part], biases: Mapping[str, Any], sites: Sites
) -> tuple[Rewritten, dict[str, Any]]:
    """A function with parts in place of sites; the other sites of their leaves are spelled out.

    Args:
        apply: pure, of `params` and a batch.
        params: its tree of arrays.
        made: the parts.
        biases: (n,), by site.
        sites: of the function.
    """
    leaves = jaxprs.leaf_paths(params)
    specs = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    kernels = dict(leaves)
    for path, bias in biases.items():
        view = sites.biases[path]
        leaves[view.leaf] = _with_part(leaves[view.leaf], view, bias)
    there, gone = {part.site for part in made}, {sites[part.site].leaf for part in made}
    others = [site for site in sites if site.leaf in gone and site.path not in there]
    whole = [*made, *(parts.of_site(site, DENSE, _kernel(sites, site.path, kernels)) for site in others)]
    left = {path: leaf for path, leaf in leaves.items() if path not in gone}
    function = Rewritten(apply, jax.tree.structure(params), specs, {}, {}, {})
    return _with(function, {"leaves": left, "sites": {}}, whole, sites)


def _with(
    function: Rewritten, params: Mapping[str, Any], made: Iterable[Part], sites: Sites
) -> tuple[Rewritten, dict[str, Any]]:
    """A function with more parts."""
    plan, infos, of_site = dict(function.plan), dict(function.infos), dict(function.parts)
    values = dict(params["sites"])
    for part in made:
        like = function.specs[sites[part.site].leaf]
        values[part.path] = {name: _as_leaf(value, like) for name, value in part.layer.items()}
        plan[part.path], infos[part.path] = part.entry, part.info
        of_site[part.site] = (*of_site.get(part.site, ()), part.path)
    new = dataclasses.replace(function, plan=plan, infos=infos, parts=of_site)
    return new, {"leaves": dict(params["leaves"]), "sites": values}


def _kernel(sites: Sites, path: str, leaves: Mapping[str, Any]) -> Layer:
    return {"kernel": kernel_of(sites, path, leaves)["kernel"]}


def _as_leaf(value: Any, leaf: Any) -> Any:
    """A factor in the precision of the leaf that it stands for; integers as they are."""
    floats = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
    return np.asarray(value).astype(leaf.dtype) if floats else value


def _check(plan: Plan, sites: Sites) -> None:
    """UserError for what a plan of a user's asks of sites and they cannot be."""
    known = {site.path: site for site in sites}
    for path, entry in plan.items():
        if path not in known:
            raise UserError(f"The plan has {path!r}, where no product is; {nearest(path, known)}")
        if entry.form != "dense" and not known[path].compressible:
            raise UserError(f"{path} {known[path].reason}, and cannot be compressed; leave it out of the plan.")
        if entry.form not in (*FORMS, "pivoted") or entry.basis == "leading":
            raise UserError(f"The plan has {entry.form} {entry.basis} at {path!r}, which only our own models take.")
        info = known[path].info()
        if not (entry.form == "pivoted" and entry.rank == info.break_even_of(entry)):  # full rank costs what dense does
            check_layer(info, entry)


def spelled_out(function: Rewritten, params: Mapping[str, Any], sites: Sites) -> tuple[Rewritten, dict[str, Any]]:
    """The same function with a form of its own at every site that can be compressed, dense ones too.

    Args:
        function: of `rewrite`.
        params: its parameters.
        sites: of the function as it came.
    """
    kept = {site.leaf for site in sites if not site.compressible}
    new = [site for site in sites if site.path not in function.parts and site.leaf not in kept]
    made = [parts.of_site(site, DENSE, _kernel(sites, site.path, params["leaves"])) for site in new]
    whole = {site.leaf for site in new}
    left = {path: leaf for path, leaf in params["leaves"].items() if path not in whole}
    return _with(function, {"leaves": left, "sites": params["sites"]}, made, sites)


def replaced(
    params: Mapping[str, Any], kernels: Mapping[str, Any], biases: Mapping[str, Any], sites: Sites
) -> dict[str, Any]:
    """The parameters of a function that is spelled out, with other kernels and biases at some sites."""
    of_sites, leaves = dict(params["sites"]), dict(params["leaves"])
    for path, kernel in kernels.items():
        of_sites[path] = {"kernel": jnp.asarray(kernel, of_sites[path]["kernel"].dtype)}
    for path, bias in biases.items():
        view = sites.biases[path]
        leaves[view.leaf] = jnp.asarray(_with_part(leaves[view.leaf], view, bias))
    return {"leaves": leaves, "sites": of_sites}


def kernel_of(sites: Sites, path: str, leaves: Mapping[str, Any]) -> Layer:
    """A site as a dense layer, {kernel (m, n)} and {bias (n,)} where it has one; float32."""
    use = next(use for use in sites.uses.values() if use.path == path)
    kernel = use.product.arrange(use.view.of(np.asarray(leaves[use.view.leaf])))
    layer = {"kernel": np.asarray(kernel, np.float32)}
    if path in sites.biases:
        view = sites.biases[path]
        layer["bias"] = np.asarray(view.of(np.asarray(leaves[view.leaf])), np.float32).reshape(-1)
    return layer


def form_of(layer: Mapping[str, np.ndarray], entry: LayerPlan) -> Layer:
    """A dense layer in another form, its pair by truncated SVD, or, of a layer {u, v}, that pair."""
    if entry.form == "dense":
        return {"kernel": layer["kernel"]}
    if "u" in layer:
        made = Pair(np.asarray(layer["u"], np.float64), np.asarray(layer["v"], np.float64))
    else:
        made = svd.decompose(np.asarray(layer["kernel"], np.float64), entry.rank, None)
    if entry.form == "pivoted":
        fixed = pivot.input_side(made) if entry.basis == "input" else pivot.output_side(made)
        parts = {"u": fixed.first, "v": fixed.second}
        return {name: np.asarray(part, np.float32) for name, part in parts.items()} | {
            "basis": fixed.basis.astype(np.int16)
        }
    factors = {"u": np.asarray(made.u, np.float32), "v": np.asarray(made.v, np.float32)}
    if entry.form == "reparam":
        factors |= {f"d{name}": np.zeros_like(factor) for name, factor in factors.items()}
    return factors


def _with_part(leaf: Any, view: Any, part: np.ndarray) -> np.ndarray:
    """A leaf with new entries where a view shows some of it."""
    value = np.array(leaf)
    order = view.of(np.arange(math.prod(value.shape)).reshape(value.shape)).reshape(-1)
    value.reshape(-1)[order] = part
    return value
