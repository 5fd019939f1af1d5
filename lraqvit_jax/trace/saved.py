"""A compressed function on disk: an artefact with the plan and the parameters, and no code."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from lraqvit_jax.base import files, links, trees
from lraqvit_jax.base.errors import UserError, reason
from lraqvit_jax.plan.files import from_json, to_json
from lraqvit_jax.plan.records import LayerPlan, LinearInfo
from lraqvit_jax.trace import jaxprs, parts
from lraqvit_jax.trace.rewrite import Rewritten
from lraqvit_jax.trace.sites import Site, Sites
from lraqvit_jax.weights import artifacts

META = {"kind": str, "plan": dict, "leaves": dict}
KIND = "function"
MEND = "delete the folder and make it again"


def write(folder: pathlib.Path, function: Rewritten, params: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Writes an artefact; UserError where there is something already.

    Args:
        folder: of it.
        function: float or in integers.
        params: of it.
        more: what else its meta is to say.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already; name another folder.")
    leaves = {path: [list(spec.shape), str(spec.dtype)] for path, spec in function.specs.items()}
    meta = {**more, "kind": KIND, "plan": to_json(function.plan), "leaves": leaves, "versions": artifacts.versions()}
    host = jax.tree.map(np.asarray, dict(params))
    tree = {name: trees.nest(values) for name, values in host.items() if values}
    artifacts.save_artifact(folder.absolute(), tree, meta)


def read(
    folder: pathlib.Path, apply: Callable[..., Any], params: Any, sites: Sites
) -> tuple[Rewritten, dict[str, Any]]:
    """The function and its parameters.

    Args:
        folder: that `write` wrote.
        apply: the function as it came.
        params: of it, or their shapes.
        sites: of it.

    Raises:
        UserError: nothing is there, it is damaged, or of another function.
    """
    path = artifacts.meta_file(folder)
    if path is None:
        raise UserError(f"There is no function in {folder}; give the folder that Function.save wrote.")
    meta = files.json_object(path, MEND)
    files.check(meta, META, str(path), MEND)
    plan, leaves = from_json(meta["plan"], str(path)), jaxprs.leaf_paths(params)
    specs = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    here = {name: [list(spec.shape), str(spec.dtype)] for name, spec in specs.items()}
    for name in sorted({*here, *meta["leaves"]}):
        if here.get(name) != meta["leaves"].get(name):
            raise UserError(
                f"{folder} was made of a function whose parameter {name!r} is {meta['leaves'].get(name)}, and here it "
                f"is {here.get(name)}; give the function and params that it was made of."
            )
    try:
        tree = ocp.load(links.plain(folder.absolute()), checkpointable_name="params")
        artifacts.check(tree, meta.get("fingerprint"))
        of_sites = {name: dict(trees.get(tree["sites"], name)) for name in plan}
        values = jax.tree.map(jnp.asarray, {"leaves": trees.flatten(tree.get("leaves", {})), "sites": of_sites})
        by_site, infos = _parts(plan, values["sites"], sites)
    except Exception as error:  # A damaged file can go wrong in any way.
        raise UserError(f"The function in {folder} is damaged ({reason(error)}); {MEND}.") from error
    return Rewritten(apply, jax.tree.structure(params), specs, plan, infos, by_site), values


def _parts(
    plan: Mapping[str, LayerPlan], values: Mapping[str, Any], sites: Sites
) -> tuple[dict[str, tuple[str, ...]], dict[str, LinearInfo]]:
    """The parts of each site, and their shapes."""
    known = {site.path: site for site in sites}
    by_site: dict[str, tuple[str, ...]] = {}
    infos: dict[str, LinearInfo] = {}
    for path, entry in plan.items():
        site = known[path if path in known else path.rpartition("/")[0]]
        by_site[site.path] = (*by_site.get(site.path, ()), path)
        infos[path] = _info(site, path, entry, values[path])
    return by_site, infos


def _info(site: Site, path: str, entry: LayerPlan, layer: parts.Layer) -> LinearInfo:
    heads = np.shape(layer["basis"])[0] if entry.basis and not entry.rank else 0
    name = path.removeprefix(site.path).removeprefix("/")
    part = parts.below(site, name, entry, layer, heads=heads)
    return dataclasses.replace(part.info, path=path)
