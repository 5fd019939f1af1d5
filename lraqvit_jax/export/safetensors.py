"""safetensors for PyTorch: any artefact under timm's names, matrices as (out, in). Reading it needs nothing of ours.

A layer X of timm's model, with m features in and n out, is stored in the form that the plan gives it:

    dense      X.weight (n, m), X.bias (n,): a file with nothing else is a timm state dict
    low rank   X.0.weight (r, m), X.1.weight (n, r), X.1.bias (n,):
               torch.nn.Sequential(nn.Linear(m, r, bias=False), nn.Linear(r, n))
    pivoted    a factor has an identity block, which copies channels and is not stored; a basis, int16, says which, and
               `rest` are all others, rising:
               X.0.basis (r,): z = x[basis] + X.0.weight @ x[rest], X.0.weight (r, m - r)
               X.1.basis (r,): y[basis] = z, y[rest] = X.1.weight @ z, X.1.weight (n - r, r); then the bias (n,)
               no basis, but X.1.bias longer than X.1.weight: the same, with the first r outputs as the basis
               X.basis (heads, w), n = heads w: head after head, y = x[basis] + X.weight @ x[rest], X.weight (n, m - w)
    int8       the names of the compressed-tensors format: X.weight int8 (n, m), X.weight_scale float32 (n, 1),
               X.input_scale float32 () or (tokens, 1) where it is static; and of ours X.input_smooth (m,), where the
               input is divided by a vector first, and X.input_center, like input_scale, where the grid of the
               activations is asymmetric. A pair has these under X.0 and X.1. With groups of g input channels,
               weight_scale is (n, m / g rounded up), m without those that a basis copies.
    3-6 bits   X.weight_packed uint8 (n, bytes) for X.weight: m integers of b bits plus 2 ** (b - 1), of which a byte
               holds two of 4 bits: the first half of the row in the low bits, the second half in the high bits. Three
               bytes hold four of 6 bits, one of each quarter, the first lowest, or eight of 3 bits, one of each
               eighth; five bytes eight of 5 bits. First come all first bytes, then all second ones.

Where the plan is by head, attn.query, attn.key and attn.value stand in place of attn.qkv, head after head; query and
key have a width of their own, value another. Scores are q @ k.T / sqrt(dim / heads), whatever the width.

With sums over integers exact and rounding to nearest, ties to even, such a matrix computes

    q = clip(round((x / input_smooth - input_center) / input_scale), -127, 127)     2 ** (b - 1) - 1 for b bits
    y = (q @ weight.T) * input_scale * weight_scale.T + input_center * (weight * weight_scale).sum(1) + bias

where a missing input_smooth is 1, a missing bias or input_center 0, and a missing input_scale, for each token,
`clip * max|x / input_smooth| / 127` with the plan's `clip`, for X.1 its `clip_z` where that is not 0 (a token of zeros
has q = 0). Where the plan says asymmetric without a stored centre, it is the middle of the token's range, rounded to a
whole multiple of the scale. What is copied is x or z itself, neither divided nor rounded, though scales and centres of
tokens are those of all inputs. What the plan's `attention` says of a layer qkv or query is in
`lraqvit_jax/quant/attention.py`.

What reads pixels is a convolution, as in timm: patch_embed.proj.weight is (n, 3, p, p) and its input_smooth goes by the
same (3, p, p); but where it is packed, or has a basis of pixels, all go by (p, p, 3). timm's DeiT-III, and DINOv2
with registers, give the class token no position: `cls_token` has it added.

All that is the layout "factors". "expanded" is the dense model that a float one computes, a state dict that timm's
model takes with strict=True: pairs are multiplied out, query, key and value are a qkv, and zeros stand for the channels
and hidden units that are gone.

Metadata, all strings: `format` ("lraqvit_jax 1"), `name`, `model`, `num_classes`, and as JSON `plan` (by our parameter
paths), `preprocess` and `class_names`. By them `load` reads a file of either layout back.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from lraqvit_jax import models
from lraqvit_jax.base import files, trees
from lraqvit_jax.base.errors import UserError, nearest, reason, short
from lraqvit_jax.base.trees import flatten
from lraqvit_jax.data import preprocess
from lraqvit_jax.export.contract import contract
from lraqvit_jax.lowrank import expand, reparam
from lraqvit_jax.options.export import LAYOUTS
from lraqvit_jax.plan import records
from lraqvit_jax.plan.files import from_json, to_json
from lraqvit_jax.plan.records import LayerPlan, Plan
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights import tensors as stored

FORMAT = "lraqvit_jax 1"


def save(artifact: artifacts.Artifact, path: pathlib.Path, layout: str = "factors") -> None:
    """Writes an artefact; the branch of a reparam layer is merged into its pair.

    Args:
        artifact: of any form.
        path: of the file.
        layout: one of `options.export.LAYOUTS`.

    Raises:
        UserError: no such layout; "expanded", of integers.
    """
    if layout not in LAYOUTS:
        raise UserError(f"There is no safetensors layout {layout!r}; {nearest(layout, LAYOUTS)}")
    artifact = expanded(artifact) if layout == "expanded" else artifact
    meta = artifact.meta
    metadata = {"format": FORMAT, "model": meta["model"], "num_classes": str(meta["num_classes"])}
    metadata["name"] = meta.get("name", meta["model"])
    said = {**contract(artifact), "plan": meta["plan"]}
    metadata |= {name: json.dumps(said[name]) for name in ("plan", "preprocess", "class_names", "input", "output")}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, safetensors.numpy.save(tensors(artifact), metadata))


def load(path: pathlib.Path, dtype: str = "float32") -> artifacts.Artifact:
    """Reads back what `save` wrote, in the layout "factors" or "expanded": the same arrays, to the bit.

    Args:
        path: of the file.
        dtype: of the model's float products.

    Raises:
        UserError: no such file, one of somebody else, or tensors that are not those of its plan.
    """
    values, said = stored.read(path), stored.metadata(path)
    if said.get("format") != FORMAT:
        raise UserError(f"{path} is not of {FORMAT}; timm's own files are read as weights, timm:{path}.")
    try:
        meta = {name: json.loads(said[name]) for name in ("plan", "preprocess", "class_names", "num_classes")}
        # A branch was merged as the file was written.
        plan = {
            layer: dataclasses.replace(one, form="low_rank") if one.form == "reparam" else one
            for layer, one in from_json(meta["plan"], str(path)).items()
        }
        meta |= {"model": said["model"], "name": said.get("name", said["model"]), "plan": to_json(plan)}
        prepare, model = preprocess.from_json(meta["preprocess"]), artifacts.build(meta, dtype)
        abstract = artifacts.abstract(meta)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not say what it is ({reason(error)}); export it again.") from error
    swin = models.variants()[models.split(meta["model"])[0]] == "swin"
    rules = _rules(abstract, plan, swin)
    if {"reg_token", "pos_embed"} <= {*rules} or meta["model"].startswith("deit3"):
        rules["pos_embed"] = (rules["pos_embed"][0], functools.partial(_with_class, "cls_token" in rules))
    return artifacts.Artifact(model, trees.nest(_read(values, rules, flatten(abstract), path)), prepare, meta)


Rule = tuple[str, Callable[[np.ndarray], np.ndarray]]
"""The name of a tensor in a file, and what makes the parameter of it."""


def _read(
    values: Mapping[str, np.ndarray], rules: Mapping[str, Rule], shapes: Mapping[str, Any], path: pathlib.Path
) -> dict[str, np.ndarray]:
    """The parameters by path; UserError for a tensor that is missing, left over, or not what the plan says."""
    if odd := {name for name, _ in rules.values()} ^ {*values}:
        raise UserError(f"{path} and its plan differ in {short(min(odd))}; copy the file again, or export it again.")
    made = {}
    for name, (tensor, make) in rules.items():
        value, shape = values[tensor], shapes[name]
        try:
            made[name] = np.asarray(make(value), order="C")
        except ValueError:
            made[name] = value
        if made[name].shape != shape.shape or made[name].dtype != shape.dtype:
            raise UserError(
                f"{path} has {short(tensor)} as {value.dtype} {value.shape}, which is not what its plan says; copy the "
                "file again, or export it again."
            )
    return made


def _rules(abstract: Any, plan: Plan, swin: bool) -> dict[str, Rule]:
    """By parameter path, where each array is and what `_linear` did to it, undone."""
    rules: dict[str, Rule] = {}
    for path, leaf in flatten(abstract).items():
        owner = next((layer for layer in plan if path.startswith(f"{layer}/")), "")
        part = path.removeprefix(f"{owner}/")
        rule: Rule = _rule(part, leaf, trees.get(abstract, owner), plan[owner], owner) if owner else ("", np.asarray)
        rules[path] = (timm_name(owner or path, swin) + rule[0], rule[1])
    return rules


def _rule(part: str, leaf: Any, weights: Mapping[str, Any], layer: LayerPlan, owner: str) -> Rule:
    """Of one array of a layer, such as "u/qvalue": what its name ends with, from a dot on."""
    first, last = (".0", ".1") if "u" in weights else ("", "")
    kernel = weights.get("u", weights.get("kernel"))
    packed = isinstance(kernel, Mapping) and kernel["qvalue"].dtype == np.uint8
    by_pixel = owner == "patch_embed" and not packed and layer.basis != "input"
    name, _, kind = part.partition("/")
    one = last if name.startswith(("v", "z")) or name == "bias" else first
    if kind == "scale":
        return f"{one}.weight_scale", np.transpose if len(leaf.shape) > 1 else lambda value: value[:, 0]
    if name in ("kernel", "u", "v"):
        make = _channels_last if by_pixel and name != "v" else np.transpose
        return f"{one}.weight{'_packed' * (leaf.dtype == np.uint8)}", make
    if name == "smooth":
        side = math.isqrt(leaf.shape[0] // 3)
        pixels = lambda value: _channels_last(value.reshape(3, side, side))  # noqa: E731
        return f"{one}.input_smooth", pixels if by_pixel else np.asarray
    if name == "basis":
        return f"{last if layer.basis == 'output' else first}.basis", np.asarray
    return f"{one}.bias" if name == "bias" else f"{one}.input_{name[2:]}", np.asarray


def _channels_last(values: np.ndarray) -> np.ndarray:
    """(..., 3, p, p) -> (p p 3, ...), undoing `_channels_first`."""
    moved = np.moveaxis(values, (-2, -1, -3), (0, 1, 2))
    return moved.reshape(-1, *moved.shape[3:])


def _with_class(there: bool, positions: np.ndarray) -> np.ndarray:
    """Positions with zeros for the class token, which has its own added."""
    return np.concatenate([np.zeros_like(positions[:, :1]), positions], 1) if there else positions


def obstacle(plan: Plan, layout: str) -> str:
    """Why a model of this plan cannot be written so, as the rest of a sentence; "" if it can."""
    odd = next((path for path, layer in plan.items() if layer.form == "quantized"), "")
    if layout != "expanded" or not odd:
        return ""
    return (
        f"has integers, as in {odd}, which timm's layers do not compute with; take the layout 'factors', or the "
        "float model that it was made of."
    )


def expanded(artifact: artifacts.Artifact) -> artifacts.Artifact:
    """The dense model that a float artefact computes; UserError for one of integers."""
    if reason := obstacle(artifact.plan, "expanded"):
        raise UserError(f"{artifact.name} {reason}")
    meta, size = artifact.meta, artifact.preprocess.size
    layers = models.spec(meta["model"], num_classes=meta["num_classes"], image_size=size).layers
    params = expand.dense_params(artifacts.host(artifact.params), artifact.plan, layers)
    meta = meta | {"plan": to_json(records.dense(layers))}
    return dataclasses.replace(artifact, model=artifacts.build(meta), params=params, meta=meta)


def tensors(artifact: artifacts.Artifact) -> dict[str, np.ndarray]:
    """What the file holds: host arrays by name."""
    params, model = artifacts.host(artifact.params), artifact.meta["model"]
    swin = models.variants()[models.split(model)[0]] == "swin"
    named: dict[str, np.ndarray] = {}
    for path, layer in artifact.plan.items():
        weights = trees.get(params, path)
        weights = reparam.merge(weights) if layer.form == "reparam" else weights
        named |= _linear(timm_name(path, swin), weights, layer, pixels=path == "patch_embed")
    for path, value in flatten(params).items():
        if not any(path.startswith(f"{layer}/") for layer in artifact.plan):
            named[timm_name(path, swin)] = value
    if model.startswith("deit3") or "reg_token" in named:
        named |= {"cls_token": named["cls_token"] + named["pos_embed"][:, :1]} if "cls_token" in named else {}
        named["pos_embed"] = named["pos_embed"][:, "cls_token" in named :]
    # The library writes the bytes as they lie.
    return {name: np.asarray(value, order="C") for name, value in named.items()}


def timm_name(path: str, swin: bool) -> str:
    """timm's name for what is at one of our paths: "blocks_0/norm1/scale" is "blocks.0.norm1.weight"."""
    name = re.sub(r"_(\d+|gamma)(?=/|$)", r"/\1", path)
    name = re.sub(r"/scale$", "/weight", name)
    first, slash, rest = name.partition("/")
    renamed = {"patch_embed": "patch_embed/proj", "patch_norm": "patch_embed/norm"} | (
        {"head": "head/fc"} if swin else {}
    )
    return f"{renamed.get(first, first)}{slash}{rest}".replace("/", ".")


def _linear(name: str, weights: Mapping[str, Any], layer: LayerPlan, pixels: bool) -> dict[str, np.ndarray]:
    """One layer in its form; `pixels` where its inputs are the (p, p, 3) of a patch."""
    named = {}
    where = {"u": f"{name}.0", "v": f"{name}.1"} if "u" in weights else {"kernel": name}
    if "basis" in weights:
        factor = "v" if layer.basis == "output" else "u"
        named[f"{where.get(factor, name)}.basis"] = weights["basis"]
    for key, one in where.items():
        kernel, first = weights[key], key != "v"
        packed = isinstance(kernel, Mapping) and kernel["qvalue"].dtype == np.uint8
        by_pixel = pixels and not packed and layer.basis != "input"
        if isinstance(kernel, Mapping):
            named[f"{one}.weight_scale"] = kernel["scale"].T if kernel["scale"].ndim > 1 else kernel["scale"][:, None]
            for stored in ("scale", "center", "smooth"):
                value = weights.get(f"{'x' if first else 'z'}_{stored}")
                named |= {} if value is None else {f"{one}.input_{stored}": value}
            if first and "smooth" in weights:
                smooth = weights["smooth"]
                named[f"{one}.input_smooth"] = _channels_first(smooth).reshape(-1) if by_pixel else smooth
            kernel = kernel["qvalue"]
        named[f"{one}.weight{'_packed' * packed}"] = _channels_first(kernel) if by_pixel and first else kernel.T
    if "bias" in weights:
        named[f"{one}.bias"] = weights["bias"]
    return named


def _channels_first(rows: np.ndarray) -> np.ndarray:
    """(p p 3, ...) -> (..., 3, p, p)."""
    side = math.isqrt(len(rows) // 3)
    return np.moveaxis(rows.reshape(side, side, 3, *rows.shape[1:]), (2, 0, 1), (-3, -2, -1))
