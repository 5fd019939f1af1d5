"""`compress` for any JAX function: parameters, batches and a budget in, a function of fewer parameters out."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lraqvit_jax.base import console, files, trees
from lraqvit_jax.base.errors import UserError, nearest, reason, short, whole_number
from lraqvit_jax.lowrank import spectra
from lraqvit_jax.options import quant
from lraqvit_jax.plan.cost import Cost, layer_cost
from lraqvit_jax.plan.ranks import factorized
from lraqvit_jax.plan.records import DENSE, LayerPlan, LinearInfo, Plan
from lraqvit_jax.quant import quantize
from lraqvit_jax.trace import moments as statistics
from lraqvit_jax.trace import parts, products, rewrite, saved, sizes, train
from lraqvit_jax.trace.parts import Part
from lraqvit_jax.trace.places import Biases, Layer
from lraqvit_jax.trace.rewrite import Rewritten
from lraqvit_jax.trace.sites import Site, Sites

ROUNDS = 2
"""Of measuring sizes."""
ROWS = 4096
"""Of what a product reads, about, for the ranges of its integers: as many of every batch, evenly apart."""


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A compressed function of a batch.

    Attributes:
        apply: of `params` and a batch; under jit, grad, vmap, and `jax.export`.
        params: `{"leaves": ..., "sites": ...}`.
        plan: the form of every site.
        sites: what was found in the function as it came.
    """

    apply: Rewritten
    params: Mapping[str, Any]
    plan: Plan
    sites: Sites

    def __call__(self, batch: Any) -> Any:
        return jax.jit(self.apply)(self.params, batch)

    def __repr__(self) -> str:
        forms = ", ".join(f"{count} {form}" for form, count in sorted(self._forms().items()))
        return f"<lraqvit_jax.Function of {len(self.sites)} sites: {forms}; {self.parameters:,} parameters>"

    def _forms(self) -> dict[str, int]:
        names = [name for site in self.sites for name in self.apply.parts.get(site.path, (site.path,))]
        return dict(collections.Counter(self.plan.get(name, DENSE).form for name in names))

    @property
    def parameters(self) -> int:
        """Entries of kernels and of all other leaves; scales, and what says which channels are copied, do not count."""
        costs = (self._cost(site) for site in self.sites if site.path in self.apply.parts)
        return sum(cost.params for cost in costs) + sum(map(np.size, self.params["leaves"].values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(self.params))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of an example in all sites."""
        return sum(site.calls * self._cost(site).flops for site in self.sites) // 2

    def _cost(self, site: Site) -> Cost:
        names = self.apply.parts.get(site.path)
        if names is None:
            return layer_cost(parts.shapes(site), DENSE)
        return sum((layer_cost(self.apply.infos[name], self.plan[name]) for name in names), Cost())

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the plan and the parameters, with orbax; `Function.restore` reads them. The function itself is code.

        Raises:
            UserError: there is something already.
        """
        saved.write(files.locate_new(folder), self.apply, self.params, {})

    @classmethod
    def restore(cls, folder: str | pathlib.Path, apply: Callable[..., Any], params: Any, batch: Any) -> "Function":
        """A function that `save` wrote.

        Args:
            folder: that was written.
            apply: the function as it came.
            params: as they came, or their shapes (`jax.eval_shape`).
            batch: as `apply` takes it.

        Raises:
            UserError: nothing was written there, it is damaged, or it is of another function.
        """
        sites = products.find(apply, params, batch)
        function, values = saved.read(files.locate(folder), apply, params, sites)
        return cls(function, values, function.plan, sites)

    def export(self, path: str | pathlib.Path, batch: Any) -> None:
        """Writes StableHLO with the parameters inside; `jax.export.deserialize` reads it.

        It takes any number of examples, or, with a warning, as many as `batch` has, where the function does not take
        a number that is not known yet.

        Args:
            path: of the file.
            batch: as the function takes it.
        """
        (count,) = jax.export.symbolic_shape("batch")
        constants = jax.tree.map(np.asarray, self.params)
        run = jax.jit(lambda given: self.apply(constants, given))
        try:
            exported = jax.export.export(run)(_specs(batch, count))
        except (UserError, TypeError, ValueError) as error:
            exported = jax.export.export(run)(_specs(batch, products.examples(batch)))
            console.warn(f"{path} takes batches of {products.examples(batch)} alone ({short(reason(error))}).")
        files.write_atomically(files.locate_file(path, "model.stablehlo"), bytes(exported.serialize()))


def _specs(batch: Any, count: Any) -> Any:
    """Shapes of a batch of that many examples."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *np.shape(x)[1:]), jnp.result_type(x)), batch)


def check(budget: float, bits: int, quantizer: str) -> None:
    """UserError for what no model or function can be compressed to."""
    if not files.number(budget) or not 0 < budget <= 1:
        raise UserError(f"budget is {short(repr(budget))}; give the share to keep, a number above 0 and at most 1.")
    if isinstance(bits, bool | float) or bits not in (0, *quant.BITS):
        raise UserError(f"bits is {bits!r}; give {', '.join(map(str, quant.BITS))}, or 0 to stay in float32.")
    if quantizer not in quant.QUANTIZERS:
        raise UserError(f"quantizer is {quantizer!r}; {nearest(quantizer, quant.QUANTIZERS)}")


def compress(
    apply: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    budget: float = 0.5,
    metric: str = "logits",
    bits: int = 0,
    quantizer: str = "dynamic",
    keep_dense: Iterable[str] = (),
    multiple: int = 1,
    steps: int = 0,
    learning_rate: float = 0.0,
    seed: int = 0,
) -> Function:
    """Makes a function small: products of attention heads, fewer hidden units, and pairs with identity blocks in place
    of its kernels; then, if asked for, distillation; then integers.

    Sizes are those that change the outputs least under the budget: predicted by closed forms, measured where that
    decides.

    Args:
        apply: pure, of `params` and a batch; it is not changed.
        params: a tree of arrays.
        batches: some, as `apply` takes them: arrays or trees of them with examples along the first axes.
        budget: share of the parameters of the kernels to keep, in (0, 1]; the first and the last layer are not counted,
            and stay whole.
        metric: what is to be kept, of `trace.moments.KEPT`.
        bits: of kernels and activations, 3 to 8; 0 stays in floats.
        quantizer: how, one of `config.QUANTIZERS`, with scales by token as they come or one scale for all.
        keep_dense: paths of sites, or of what holds them, that stay as they are.
        multiple: of which every rank and every width is one.
        steps: of distillation from the function as it came; 0 trains nothing. Only what `budget` changed is worth it.
        learning_rate: of these, the highest; 0 is the one whose first step lowers the loss most.
        seed: of the random projections, and of the order of batches.

    Raises:
        UserError: a function that cannot be traced, no site to compress, a budget or a width that does not fit.
    """
    check(budget, bits, quantizer)
    batches = listed(batches)
    small = smaller(
        apply,
        params,
        batches,
        budget=budget,
        metric=metric,
        keep_dense=keep_dense,
        multiple=multiple,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
    )
    return integers(small, batches, bits, quantizer) if bits else small


def smaller(
    apply: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    budget: float,
    metric: str = "logits",
    keep_dense: Iterable[str] = (),
    multiple: int = 1,
    steps: int = 0,
    learning_rate: float = 0.0,
    seed: int = 0,
) -> Function:
    """`compress` in floats; arguments as there."""
    multiple, steps = whole_number(multiple, "multiple", low=1), whole_number(steps, "steps", low=0)
    if not files.number(learning_rate) or learning_rate < 0:
        raise UserError(f"learning_rate is {short(repr(learning_rate))}; give one above 0, or 0 to have it found.")
    batches = listed(batches)
    sites = products.find(apply, params, batches[0])
    layers = _layers(sites, keep_dense)
    function, new_params = rewrite.rewrite(apply, params, {}, sites)
    if budget < 1:
        chosen = [sites[layer.path] for layer in layers]
        made, biases = _smaller(function, new_params, sites, chosen, batches, budget, metric, multiple, seed)
        function, new_params = rewrite.of_parts(apply, params, made, biases, sites)
    small = Function(function, jax.tree.map(jnp.asarray, new_params), function.plan, sites)
    if not steps:
        return small
    return trained(small, apply, params, batches, metric=metric, steps=steps, learning_rate=learning_rate, seed=seed)


def trained(
    small: Function,
    apply: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    metric: str,
    steps: int,
    learning_rate: float = 0.0,
    seed: int = 0,
) -> Function:
    """A float function after steps of distillation from the one as it came; arguments as of `compress`.

    Kernels that are no site stay as they came: what was not made smaller has nothing to win back, and some of their
    gradients are far slower than all else (a transposed convolution's on a CPU: a hundred times its product).
    """
    fixed = {leaf for one in small.sites.skipped if one.macs for leaf in one.leaves}
    new_params = train.distil(
        small.apply,
        small.params,
        apply,
        params,
        listed(batches),
        keep=metric,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        fixed=fixed,
    )
    return dataclasses.replace(small, params=new_params)


def integers(small: Function, batches: Iterable[Any], bits: int, quantizer: str = "dynamic") -> Function:
    """A float function with integers in all sites that can be compressed; arguments as of `compress`.

    Raises:
        UserError: there are integers already.
    """
    if any(entry.form == "quantized" for entry in small.plan.values()):
        raise UserError("This function has integers already; give the one in floats (bits=0).")
    function, params, plan = _integers(small.apply, small.params, small.sites, listed(batches), bits, quantizer)
    return Function(function, jax.tree.map(jnp.asarray, params), plan, small.sites)


def listed(batches: Iterable[Any]) -> list[Any]:
    """The batches, some; UserError for what is none."""
    if isinstance(batches, str) or not isinstance(batches, Iterable) or hasattr(batches, "shape"):
        raise UserError(f"batches is {short(repr(batches))}; give a list of batches as the function takes them.")
    batches = list(batches)
    if not batches:
        raise UserError("batches is empty; give some batches as the function takes them.")
    return batches


def _layers(sites: Sites, keep_dense: Iterable[str]) -> list[LinearInfo]:
    """What is to be factorized; UserError where that is nothing."""
    layers = [layer for layer in sites.layers if layer.compressible]
    if not layers:
        why = "; ".join(f"{', '.join(one.leaves)} {one.reason}" for one in sites.skipped[:3])
        raise UserError(f"No product of the function can be compressed{': ' + why if why else ''}.")
    return factorized(layers, keep_dense, pivot=True)


def _smaller(
    function: Rewritten,
    params: Mapping[str, Any],
    sites: Sites,
    chosen: list[Site],
    batches: list[Any],
    budget: float,
    metric: str,
    multiple: int,
    seed: int,
) -> tuple[list[Part], Biases]:
    """What the chosen sites become under the budget, and the biases that change."""
    queries = {
        block.query: np.unique(block.query_channels)
        for block in sites.attention
        if block.query_channels is not None and block.query == block.key
    }
    seen = statistics.moments(function, params, chosen, batches, metric, seed, queries)
    layers = {
        site.path: Layer.of(site, rewrite.kernel_of(sites, site.path, params["leaves"]), seen[site.path])
        for site in chosen
    }
    changes = sizes.Changes(function, params, sites, layers, batches, metric)
    places = sizes.places(sites, layers)
    of_place = sizes.choose(places, budget, changes, ROUNDS, multiple)
    made, biases = list[Part](), Biases()
    for of_one, changed in spectra.each(lambda place: place.made(of_place[place.name]), places, "factorize"):
        made += [part for part in of_one if not parts.untouched(part)]
        for path, bias in changed.items():
            was = layers[path].bias
            biases[path] = biases.get(path, was) + bias - was
    return made, biases


def _integers(
    function: Rewritten,
    params: Mapping[str, Any],
    sites: Sites,
    batches: list[Any],
    bits: int,
    quantizer: str,
) -> tuple[Rewritten, dict[str, Any], dict[str, LayerPlan]]:
    """The function with integers in all sites that can be compressed; its parameters and plan."""
    options = quant.QUANTIZERS[quantizer]
    granularity = options.granularity or "per_tensor"
    if granularity == "per_token":
        raise UserError(f"The quantizer {quantizer!r} has a scale for each position, which not every function has.")
    whole, whole_params = rewrite.spelled_out(function, params, sites)
    inputs = _inputs(whole, whole_params, batches)
    plan = {
        path: dataclasses.replace(
            entry, form="quantized", bits=bits, granularity=granularity, clip=1.0, asymmetric=options.asymmetric
        )
        for path, entry in whole.plan.items()
    }
    nested = trees.nest(whole_params["sites"])
    made = quantize.quantize(nested, plan, list(whole.infos.values()), inputs, dataclasses.replace(options, bits=bits))
    stored = {}
    for path, layer in whole_params["sites"].items():
        indices = {name: layer[name] for name in ("inputs", "outputs") if name in layer}
        stored[path] = {**jax.tree.map(np.asarray, trees.get(made.params, path)), **indices}
    new = dataclasses.replace(whole, plan=made.plan)
    return new, {"leaves": whole_params["leaves"], "sites": stored}, dict(made.plan)


def _inputs(
    function: Rewritten, params: Mapping[str, Any], batches: list[Any]
) -> dict[str, dict[str, Float[np.ndarray, "rows m"]]]:
    """What the products of every site read, by path."""
    paths, of_batch = list(function.parts), -(-ROWS // len(batches))
    read = jax.jit(lambda params, batch: function.observed(params, batch, {}, paths)[1])
    seen: dict[str, list[np.ndarray]] = {path: [] for path in paths}
    for batch in batches:
        for path, calls in read(params, batch).items():
            rows = jnp.concatenate(calls)
            seen[path].append(np.asarray(rows[:: max(1, len(rows) // of_batch)], np.float32))
    return {
        name: _with_between(np.concatenate(seen[path]), function.plan[name], params["sites"][name])
        for path in paths
        for name in function.parts[path]
    }


def _with_between(rows: np.ndarray, entry: LayerPlan, layer: parts.Layer) -> dict[str, np.ndarray]:
    """What the products of a part read, (1, rows, features): "x", and "z" between the factors of a pair."""
    read = np.asarray(parts.read(layer, jnp.asarray(rows)))
    inputs = {"x": read[None]}
    if entry.rank:
        inputs["z"] = np.asarray(read @ np.asarray(layer["u"]))[None]
    return inputs
