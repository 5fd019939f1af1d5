"""Parts of sites: some of their channels, or all, in a form of their own."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lraqvit_jax.forms.pivoted import take
from lraqvit_jax.plan.basis import dense_kernel
from lraqvit_jax.plan.records import DENSE, LayerPlan, LinearInfo
from lraqvit_jax.trace.sites import Site

Layer = Mapping[str, Any]


class Part(NamedTuple):
    """One part.

    Attributes:
        path: of the site, or below it the name of some of its channels, such as "query".
        site: path of the site.
        info: shapes of its kernel, as the plan leaves it; without the bias, which stays a leaf of its own.
        entry: its form.
        layer: parameters of the form. Beside them "inputs" (features_in,), which of the site's inputs it reads, and
            "outputs" (features_out,), which of its channels it gives; without them all.
        covers: the channels of the site that it stands for; those that it does not give are zero. None is all.
    """

    path: str
    site: str
    info: LinearInfo
    entry: LayerPlan
    layer: Layer
    covers: Int[np.ndarray, " k"] | None = None


def of_site(site: Site, entry: LayerPlan, layer: Layer) -> Part:
    """A whole site in a form."""
    return Part(site.path, site.path, shapes(site), entry, layer)


def below(
    site: Site, name: str, entry: LayerPlan, layer: Layer, covers: Int[np.ndarray, " k"] | None = None, heads: int = 0
) -> Part:
    """Some channels of a site, by their name.

    Args:
        site: of the part.
        name: of the channels; "" for a part that goes by the name of its site.
        entry: form.
        layer: of it, with "inputs" or "outputs".
        covers: see `Part`.
        heads: that share the outputs.
    """
    path = f"{site.path}/{name}" if name else site.path
    layer = {
        key: np.asarray(value, np.int32) if key in ("inputs", "outputs") else value for key, value in layer.items()
    }
    m = len(layer["inputs"]) if "inputs" in layer else site.features_in
    n = len(layer["outputs"]) if "outputs" in layer else site.features_out
    info = dataclasses.replace(shapes(site), path=path, features_in=m, features_out=n, heads=heads)
    return Part(path, site.path, info, entry, layer, covers)


def shapes(site: Site) -> LinearInfo:
    """What a cost needs to know of a site."""
    return dataclasses.replace(site.info(), bias=False)


def read(layer: Layer, rows: Float[Array, "rows m"]) -> Float[Array, "rows k"]:
    """The inputs that a part reads."""
    return take(rows, layer["inputs"]) if "inputs" in layer else rows


def together(
    layers: Iterable[Layer], outputs: Iterable[Float[Array, "rows _"]], count: int
) -> Float[Array, "rows count"]:
    """The channels of a site, of what its parts give; zeros where none gives any."""
    layers, outputs = list(layers), list(outputs)
    if "outputs" not in layers[0]:
        return outputs[0]
    y = jnp.concatenate(outputs, -1)
    places = jnp.concatenate([jnp.asarray(layer["outputs"], jnp.int32) for layer in layers])
    order = jnp.full(count, y.shape[-1], jnp.int32).at[places].set(jnp.arange(y.shape[-1], dtype=jnp.int32))
    return jnp.take(y.T, order, axis=0, mode="fill", fill_value=0).T


def densified(parts: Iterable[Part], kernel: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """The kernel of a site in which some channels are what these parts compute, float64.

    Args:
        parts: of the site.
        kernel: dense, for the channels that none of them covers.
    """
    made = np.array(kernel, np.float64)
    for part in parts:
        inputs = part.layer.get("inputs", np.arange(made.shape[0]))
        outputs = part.layer.get("outputs", np.arange(made.shape[1]))
        made[:, slice(None) if part.covers is None else part.covers] = 0
        made[np.ix_(inputs, outputs)] = dense_kernel(part.layer, part.entry.basis, len(inputs))
    return made


def untouched(part: Part) -> bool:
    """Whether it is a site as it came."""
    return part.entry == DENSE and not {"inputs", "outputs"} & part.layer.keys()
