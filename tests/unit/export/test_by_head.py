"""Blocks by head, pivoted pairs and narrower MLPs: on integers, in ONNX Runtime, and in safetensors files."""

import dataclasses

import jax
import numpy as np
import onnx as onnx_format
import onnxruntime
import pytest
import safetensors.numpy

from lraqvit_jax import config, models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.calibration import observe
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.export import onnx
from lraqvit_jax.export import safetensors as export
from lraqvit_jax.plan import check, cost, files, records
from lraqvit_jax.quant import quantize
from lraqvit_jax.weights import layouts
from lraqvit_jax.weights.artifacts import Artifact
from tests.unit import numpy_vit, small
from tests.unit.export import rounding
from tests.unit.models import test_by_head as by_head


def _artifact(variant, size, params, plan):
    meta = {"name": "small", "model": variant, "num_classes": 5, "class_names": [], "plan": files.to_json(plan)}
    preprocess = Preprocess(size=size)
    model = models.create(variant, num_classes=5, image_size=size, plan=plan)
    return Artifact(model, params, preprocess, meta | {"preprocess": preprocess.to_json()})


def _float(name, rng, size_of=by_head.smaller):
    variant, _, params, spec, seen, images = by_head.subject(name, rng)
    made, plan = by_head.shrunk(spec, params, seen, size_of)
    return _artifact(variant, images.shape[1], made, plan), images


def _integers(artifact, images, granularity, options, steps=None, **fields):
    """Every layer in integers, calibrated on the images themselves."""
    plan = {
        path: dataclasses.replace(layer, form="quantized", bits=8, granularity=granularity, **fields)
        for path, layer in artifact.plan.items()
    }
    rows = {"image": images, "label": np.zeros(len(images), np.int32), "mask": np.ones(len(images), bool)}
    layers = list(artifact.spec.layers)
    seen = observe.inputs(artifact.model, artifact.params, layers, [rows], small.MESH)
    return quantize.quantize(artifact.params, plan, layers, seen, options, steps)


def _quantized(artifact, images, granularity, method, **fields):
    made = _integers(artifact, images, granularity, config.QUANTIZERS[method], **fields)
    check.check(made.plan, models.spec(artifact.meta["model"], num_classes=5, image_size=images.shape[1]).layers)
    return _artifact(artifact.meta["model"], images.shape[1], made.params, made.plan)


@pytest.mark.parametrize("name", ["vit_pico", "deit3", "swin_padded"])
def test_a_float_file_computes_the_same(name, rng, tmp_path):
    artifact, images = _float(name, rng)
    onnx.export(artifact, tmp_path / "model.onnx")
    expected = np.asarray(small.apply(artifact.model, artifact.params, images))
    got = onnx.load(tmp_path / "model.onnx")(images)
    np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "granularity", "method", "fields"),
    [
        ("vit_pico", "per_token_dynamic", "dynamic", {}),
        ("vit_pico", "per_tensor", "naive", {}),
        ("vit_pico", "per_token", "wads", {}),
        ("vit_pico", "per_tensor", "static", {"asymmetric": True}),
        ("vit_pico", "per_token_dynamic", "dynamic", {"asymmetric": True, "group": 4}),
        ("vit_pico", "per_token_dynamic", "dynamic", {"weight_bits": 4}),
        ("deit3", "per_token_dynamic", "dynamic", {}),
        ("swin_padded", "per_token_dynamic", "dynamic", {}),
    ],
)
def test_integers_follow_the_float_model_and_the_file_follows_them(name, granularity, method, fields, rng, tmp_path):
    artifact, images = _float(name, rng)
    made = _quantized(artifact, images, granularity, method, **fields)
    exact = np.asarray(small.apply(artifact.model, artifact.params, images))
    got = np.asarray(small.apply(made.model, made.params, images))
    scale = np.abs(exact).max()
    assert 0 < np.abs(got - exact).max() < (0.5 if fields.get("weight_bits") else 0.15) * scale
    onnx.export(made, tmp_path / "model.onnx", exact=True)
    difference = np.abs(onnx.load(tmp_path / "model.onnx")(images) - got)  # A tie that falls otherwise moves one image.
    assert np.median(difference) < 1e-4 * scale
    assert difference.max() < 0.05 * scale
    kernels = sum(leaf.nbytes for info in made.spec.layers for leaf in _leaves(made.params, info.path))
    dense = models.spec(made.meta["model"], num_classes=5, image_size=images.shape[1]).layers
    assert kernels == cost.total_cost(made.plan, dense).bytes
    assert records.resolved(dense, made.plan) == list(made.spec.layers)


def _smoothed(artifact, images, alpha):
    """On one static scale, with `alpha(key, channels)` as smoothing vectors of what is between factors."""
    options = config.QUANTIZERS["naive"]

    def smooth(products, options):
        del options
        widths = {key: product.x.shape[-1] for key, product in products.items() if key.endswith(":z")}
        return {key: np.asarray(alpha(key, width), np.float32) for key, width in widths.items()}

    steps = quantize.steps_of(options)._replace(smooth=smooth)
    return _integers(artifact, images, "per_tensor", options, steps)


def _with_copies(rng):
    """Pairs with every place of an identity block, and one without any."""
    artifact, images = _float("vit_pico", rng)
    plan = dict(artifact.plan) | {
        "patch_embed": records.LayerPlan("pivoted", small.RANK, basis="input"),
        "head": records.LayerPlan("low_rank", 3),
    }
    shapes = small.unboxed(models.create("vit_pico", num_classes=5, image_size=8, plan=plan), images)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    for path, layer in plan.items():
        if layer.basis in ("input", "output"):
            count = 48 if path == "patch_embed" else 32
            rows = np.zeros(trees.get(shapes, path)["basis"].shape, np.int16)
            for row in np.atleast_2d(rows):
                row[:] = np.sort(rng.permutation(count)[: len(row)])
            trees.get(params, path)["basis"] = rows
    one = _artifact("vit_pico", 8, params, plan)
    assert {"input", "output", "leading", ""} == {layer.basis for layer in plan.values() if layer.rank}
    return one, images


def test_a_power_of_two_between_factors_changes_not_one_bit(rng):
    """Folded where nothing is copied, stored where an identity block makes it an input or an output itself."""
    artifact, images = _with_copies(rng)
    logits = []
    for power in (1.0, 8.0):
        made = _smoothed(artifact, images, lambda key, width, power=power: np.full(width, power))
        assert made.plan["head"].rank and not made.plan["head"].basis
        for path, layer in made.plan.items():
            assert layer.smoothed_z == layer.copies_between == ("z_smooth" in trees.get(made.params, path))
        one = _artifact("vit_pico", 8, made.params, made.plan)
        logits.append(np.asarray(small.apply(one.model, one.params, images)))
    np.testing.assert_array_equal(*logits)


def test_a_loud_channel_between_factors_that_copy_is_made_quiet(rng):
    """On one static scale for all channels, a vector that divides it takes most of the error away."""
    artifact, images = _with_copies(rng)
    loud = dict(trees.get(artifact.params, "blocks_0/mlp/fc2"))
    loud["u"], loud["v"] = (value.copy() for value in (loud["u"], loud["v"]))
    loud["u"][:, 1] *= 100
    loud["v"][1] /= 100
    artifact = dataclasses.replace(artifact, params=trees.replace(artifact.params, {"blocks_0/mlp/fc2": loud}))
    errors = {}

    def factors(key, width, strength):
        return np.where(np.arange(width) == 1, strength if key == "blocks_0/mlp/fc2:z" else 1, 1)

    for strength in (1, 100):
        made = _smoothed(artifact, images, lambda key, width, strength=strength: factors(key, width, strength))
        errors[strength] = made.errors["blocks_0/mlp/fc2:z"]
    assert errors[100] < 0.1 * errors[1]


def test_onnx_runtime_multiplies_static_integers_as_integers(rng, tmp_path):
    """What it makes of the file has no kernel that is turned back into floats."""
    artifact, images = _float("vit_pico", rng)
    made = _quantized(artifact, images, "per_tensor", "naive", weight_bits=7)
    onnx.export(made, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx_format.load(tmp_path / "optimized.onnx").graph
    kernels = {one.name for one in graph.initializer if len(one.dims) == 2}
    kinds = {node.op_type for node in graph.node}
    assert "DequantizeLinear" not in kinds
    assert not [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and kernels & {*node.input}]
    assert "MatMulIntegerToFloat" in kinds


def _leaves(params, path):
    return jax.tree.leaves(trees.get(params, path))


def _errors(artifact, images, path, **options):
    """For each image, the largest difference of a float64 transcription, on the file, to the model; over the largest
    logit of all."""
    export.save(artifact, path)
    right = numpy_vit.logits(safetensors.numpy.load_file(path), images, **options)
    got = np.asarray(small.apply(artifact.model, artifact.params, images))
    return np.abs(got - right).max(-1) / np.abs(right).max()


def _whole_with_pairs(one):
    """Whole attention and all hidden units, pairs on both sides."""
    return by_head.blocks.full(one)._replace(fc1=one.mlp[0].features_in // 2, fc2=5)


HEADS = {"vit_pico": 2, "deit3": 3}


@pytest.mark.parametrize(("name", "size_of"), [("vit_pico", by_head.smaller), ("deit3", _whole_with_pairs)])
def test_a_float_file_holds_what_its_docstring_says(name, size_of, rng, tmp_path):
    artifact, images = _float(name, rng, size_of)
    errors = _errors(artifact, images, tmp_path / "model.safetensors", heads=HEADS[name])
    assert errors.max() < rounding.ROUNDINGS * rounding.EPS
    named = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    width, dim = artifact.plan["blocks_0/attn/key"].width or artifact.model.dim // HEADS[name], artifact.model.dim
    shapes = {part: named[f"blocks.0.attn.{part}.weight"].shape for part in ("query", "key")}
    assert shapes == {"query": (HEADS[name] * width, dim), "key": (HEADS[name] * width, dim - width)}
    stored = sum(value.nbytes for key, value in named.items() if ".attn." in key or ".mlp." in key)
    dense = models.spec(artifact.meta["model"], num_classes=5, image_size=images.shape[1]).layers
    inside = [info for info in records.resolved(dense, artifact.plan) if info.path.startswith("blocks")]
    assert stored == sum(cost.layer_cost(info, artifact.plan[info.path]).bytes for info in inside)


@pytest.mark.parametrize(
    ("granularity", "method", "fields"),
    [
        ("per_token_dynamic", "dynamic", {}),
        ("per_token", "smoothquant", {"asymmetric": True, "group": 4, "weight_bits": 4}),
    ],
)
def test_an_integer_file_holds_what_its_docstring_says(granularity, method, fields, rng, tmp_path):
    floating, images = _float("vit_pico", rng)
    artifact = _quantized(floating, images, granularity, method, **fields)
    options = {name: value for name, value in fields.items() if name != "asymmetric"}
    errors = _errors(artifact, images, tmp_path / "model.safetensors", heads=2, **options)
    assert rounding.same_integers(errors)


def test_pairs_that_copy_inputs_or_outputs(rng, tmp_path):
    """Any layer, as a plan that was edited may have it."""
    bases = {"patch_embed": "input", "blocks_0/attn/qkv": "output", "blocks_0/attn/proj": "input"}
    pairs = {path: records.LayerPlan("pivoted", small.RANK, basis=basis) for path, basis in bases.items()}
    plan = small.plan() | pairs
    params, images = small.params(plan, rng), small.images(rng)
    counts = {"patch_embed": 48, "blocks_0/attn/qkv": 96, "blocks_0/attn/proj": 32}
    for path, count in counts.items():
        trees.get(params, path)["basis"] = np.sort(rng.permutation(count)[: small.RANK]).astype(np.int16)
    meta = {"name": "small", "model": "vit_pico", "num_classes": 10, "class_names": [], "plan": files.to_json(plan)}
    artifact = Artifact(small.model(plan), params, Preprocess(8), meta | {"preprocess": Preprocess(8).to_json()})
    assert _errors(artifact, images, tmp_path / "one", heads=2).max() < rounding.ROUNDINGS * rounding.EPS
    stored = {key for key in safetensors.numpy.load_file(tmp_path / "one") if key.endswith("basis")}
    assert stored == {"patch_embed.proj.0.basis", "blocks.0.attn.qkv.1.basis", "blocks.0.attn.proj.0.basis"}
    expanded = export.expanded(artifact)
    assert _errors(expanded, images, tmp_path / "one", heads=2).max() < rounding.ROUNDINGS * rounding.EPS
    whole, factors = (np.asarray(small.apply(one.model, one.params, images)) for one in (expanded, artifact))
    np.testing.assert_allclose(whole, factors, atol=3e-5 * np.abs(factors).max())


@pytest.mark.parametrize("name", by_head.VARIANTS)
def test_an_expanded_file_is_a_dense_model_of_timm(name, rng, tmp_path):
    artifact, images = _float(name, rng)
    variant, size = by_head.VARIANTS[name]
    export.save(artifact, tmp_path / "model.safetensors", "expanded")
    named = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    layout = layouts.find(named, "the file")
    params = layouts.convert(layout, layout.normalize(named), variant, size)
    dense = models.create(variant, num_classes=5, image_size=size)
    got = np.asarray(small.apply(dense, params, images))
    expected = np.asarray(small.apply(artifact.model, artifact.params, images))
    np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max())


def test_integers_are_not_expanded(rng, tmp_path):
    floating, images = _float("vit_pico", rng)
    with pytest.raises(UserError, match="patch_embed, which timm's layers do not"):
        export.save(_quantized(floating, images, "per_token_dynamic", "dynamic"), tmp_path / "one", "expanded")
    with pytest.raises(UserError, match="no safetensors layout 'expand'"):
        export.save(floating, tmp_path / "one", "expand")
    assert not (tmp_path / "one").exists()
