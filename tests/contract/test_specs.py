"""A model's SPEC against what its forward pass does, and a config's names against what there is. Shapes only: nothing
is allocated, whatever the variant."""

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import json
import pathlib
import pkgutil

import jax
import numpy as np
import pytest

from lraqvit_jax import config, lowrank, models
from lraqvit_jax.base import trees
from lraqvit_jax.calibration import moments
from lraqvit_jax.data import augment
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import sharding
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.plan import ranks
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.records import LayerPlan
from tests.unit import small

SIZE, CLASSES = 112, 11  # a multiple of every patch: 1, 2, 4, 7, 16
RANK = 4
DECOMPOSITIONS = [
    one.name
    for one in pkgutil.iter_modules(lowrank.__path__)
    if hasattr(importlib.import_module(f"{lowrank.__name__}.{one.name}"), "decompose")
]
FULL = ("vit_tiny", "vit_nano", "vit_pico")
VARIANTS = {
    json.dumps(importlib.import_module(f"{models.__name__}.{module}").VARIANTS[name], sort_keys=True): name
    for name, module in reversed(models.variants().items())
}.values()
"""The first of each set of fields: vit_tiny and deit_tiny differ by name alone."""
DEEP = ("swin_small", "swin_large")
"""Of the depth of swin_base, which takes longest."""
SHALLOW = [
    pytest.param(name, marks=pytest.mark.slow if name in DEEP else ())
    for name in (name if name.startswith("swin") or name in FULL else f"{name}_depth2" for name in VARIANTS)
] + ["vit_pico_mlp37", "swin_pico_mlp24"]
"""All variants, and two with MLPs of another width; ViTs whose blocks are the same over again are cut to two of them,
but for `FULL`."""
FAMILIES = {module: name for name, module in reversed(models.variants().items())}.values()
"""The first variant of each file of models."""
CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def build(name, one_plan=None):
    return models.create(name, num_classes=CLASSES, image_size=SIZE, plan=one_plan)


@functools.cache
def abstract(name, entries=()):
    return sharding.abstract_params(build(name, dict(entries)), SIZE, small.MESH)


def spec(name):
    return models.spec(name, num_classes=CLASSES, image_size=SIZE)


def subtrees(tree, where=""):
    """Path of every dict that holds arrays."""
    found = {where.rstrip("/")} if any(not isinstance(value, dict) for value in tree.values()) else set()
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= subtrees(value, f"{where}{name}/")
    return found


def test_there_are_eight_devices_to_test_on():
    assert jax.device_count() == 8


@pytest.mark.parametrize("name", SHALLOW)
def test_the_spec_names_every_linear_layer_with_its_shape_and_no_other(name):
    params = abstract(name)
    kernels = {
        path: {leaf: value.shape for leaf, value in trees.get(params, path).items()}
        for path in subtrees(params)
        if path and "kernel" in trees.get(params, path)
    }
    listed = {
        info.path: {"kernel": (info.features_in, info.features_out)}
        | ({"bias": (info.features_out,)} if info.bias else {})
        for info in spec(name).layers
    }
    assert kernels == listed
    assert len(spec(name).layers) == len(listed)


@pytest.mark.parametrize("name", SHALLOW)
def test_every_norm_of_the_spec_exists_and_feeds_one_layer_of_its_width(name):
    params = abstract(name)
    normed = [info for info in spec(name).layers if info.norm]
    assert len({info.norm for info in normed}) == len(normed)
    for info in normed:
        norm = trees.get(params, info.norm)
        assert {key: leaf.shape for key, leaf in norm.items()} == {
            "scale": (info.features_in,),
            "bias": (info.features_in,),
        }


@pytest.mark.parametrize("name", SHALLOW)
def test_the_forward_pass_has_the_specs_order_tokens_and_blocks(name):
    params = abstract(name)
    images = jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), np.float32)

    def run(params, images):
        return build(name).apply({"params": params}, images, return_features=True, mutable=["calibration"])

    (logits, features), seen = jax.eval_shape(run, params, images)
    assert logits.shape == (2, CLASSES)
    assert logits.dtype == np.float32
    assert len(features) == spec(name).blocks
    for info in spec(name).layers:
        x = trees.get(seen["calibration"], info.path)["x"]
        tokens = x.shape[-2] if len(x.shape) > 2 else 1
        assert (tokens, x.shape[-1]) == (info.tokens, info.features_in)


@pytest.mark.parametrize("name", FAMILIES)
def test_planned_layers_take_their_form_and_the_rest_stays(name):
    """The forms in turn, over the layers of the encoder."""
    forms = itertools.cycle([LayerPlan("reparam", RANK), LayerPlan("low_rank", RANK), LayerPlan("quantized", RANK, 8)])
    one = {info.path: next(forms) if info.compressible else LayerPlan() for info in spec(name).layers}
    check(one, spec(name).layers)
    planned = abstract(name, tuple(one.items()))
    outside = {info.path: trees.get(abstract(name), info.path) for info in spec(name).layers if info.compressible}
    stripped, dense = (trees.replace(tree, dict.fromkeys(outside)) for tree in (planned, abstract(name)))
    assert jax.tree.map(lambda leaf: leaf.shape, stripped) == jax.tree.map(lambda leaf: leaf.shape, dense)
    names = {"reparam": {"u", "v", "du", "dv"}, "low_rank": {"u", "v"}, "quantized": {"u", "v", "x_scale", "z_scale"}}
    for info in spec(name).layers:
        if info.compressible:
            leaves, form = trees.get(planned, info.path), one[info.path].form
            assert set(leaves) == names[form] | {"bias"}
            u, v = (leaves[key]["qvalue"] if form == "quantized" else leaves[key] for key in "uv")
            assert (u.shape, v.shape) == ((info.features_in, RANK), (RANK, info.features_out))


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_a_decomposition_is_exact_at_full_rank_for_any_shape(rng, name, shape, dtype):
    kernel, x = rng.standard_normal(shape).astype(dtype), rng.standard_normal((60, shape[0]))
    known = moments.of(x, rng.standard_normal((60, shape[1])))
    pair = lowrank.decomposition(name).decompose(kernel, min(shape), known)
    assert pair.u.dtype == pair.v.dtype == np.float64
    np.testing.assert_allclose(pair.u @ pair.v, kernel, atol=1e-6)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "any"], ids=lambda path: path.stem)
def test_the_names_in_a_config_are_names_of_something(path):
    """Everything that a run would look up hours later."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    configured = config.parse(module.get_config().to_dict())
    preprocess = Preprocess(**dataclasses.asdict(configured.preprocess))
    model = configured.model or "vit_tiny"  # else the weights tell it
    layers = models.spec(model, num_classes=10, image_size=preprocess.size).layers
    check(ranks.make_plan(layers, configured.plan), layers)
    augment.parse(configured.augment)
    for name in configured.factorize.baselines:
        lowrank.decomposition(name)
    for run in configured.runs.values():
        lowrank.decomposition(run.decomposition)
        reparam.form(run.branch)
