"""LiteRT files against the JAX model, and what is refused; but for that skipped without requirements-litert.txt."""

import dataclasses
import importlib.util
import json
import os

import jax
import numpy as np
import pytest

import lraqvit_jax
from lraqvit_jax import models, weights
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.export import litert
from lraqvit_jax.export.contract import contract
from lraqvit_jax.options.export import LITERT
from lraqvit_jax.plan import files
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.weights import artifacts
from tests.unit import small
from tests.unit.export import rounding, test_by_head
from tests.unit.export.test_onnx import artifact

needed = pytest.mark.skipif(bool(litert.missing()), reason=litert.missing())

STATIC, DYNAMIC = {"granularity": "per_tensor"}, {"granularity": "per_token_dynamic"}
FAMILIES = [
    ("vit_pico", 8, 0),
    ("swin_pico", 8, 8),
    ("deit3_tiny_patch8_depth2", 16, 0),
    ("vit_pico_quick", 8, 8),
    ("dinov2_giant_dim32_depth2_heads2_mlp24_patch4_reg2", 8, 8),
]
"""Model, image size, rank."""


def errors(one, images, path, variant):
    """For each image, the largest difference of the logits, over the largest logit of all."""
    litert.export(one, path, variant, images)
    want = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))
    return np.abs(litert.load(path)(images) - want).max(-1) / np.abs(want).max()


def kinds(path):
    """How many of each operator there are."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    model = schema.Model.GetRootAs(path.read_bytes())
    body = model.Subgraphs(0)
    codes = [model.OperatorCodes(body.Operators(index).OpcodeIndex()) for index in range(body.OperatorsLength())]
    operators = [names[code.BuiltinCode()] for code in codes]
    return {name: operators.count(name) for name in operators}


def stored(path):
    """The int8 constants of a file, with their scales."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (body,) = model.subgraphs
    for tensor in body.tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type == schema.TensorType.INT8 and data is not None and len(data):
            yield np.asarray(data).view(np.int8).reshape(tensor.shape), np.asarray(tensor.quantization.scale)


@needed
@pytest.mark.parametrize(("model", "size", "rank"), FAMILIES)
def test_float_models_of_every_family(rng, tmp_path, model, size, rank):
    one, images = artifact(rng, model, size, rank)
    path = tmp_path / "one.tflite"
    assert max(errors(one, images, path, "float32")) < rounding.ROUNDINGS * rounding.EPS
    whole, operators = path.stat().st_size, kinds(path)
    exact = one.model.gelu == "exact"
    assert operators.get("GELU", 0) == (sum("fc1" in info.path for info in one.spec.layers) if exact else 0)
    assert max(errors(one, images, path, "float16")) < 2e-3
    assert path.stat().st_size < whole


@needed
@pytest.mark.parametrize("variant", ["weight_only", "dynamic"])
def test_kernels_on_integers_stay_near_the_float_model(rng, tmp_path, variant):
    one, images = artifact(rng, "vit_pico", 8, 8)
    by_image = errors(one, images, tmp_path / "one.tflite", variant)
    assert 1e-4 < by_image.max() < 0.05
    kernels = list(stored(tmp_path / "one.tflite"))
    assert len(kernels) == sum(1 + bool(layer.rank) for layer in one.plan.values())


@needed
@pytest.mark.parametrize(
    ("model", "rank", "fields", "method"),
    [
        ("vit_pico", 8, STATIC, {}),
        ("swin_pico", 0, DYNAMIC, {}),
        ("vit_pico", 0, {"granularity": "per_token"}, {"method": "smoothquant"}),
        ("vit_pico", 8, {"granularity": "per_token_dynamic", "weight_bits": 7}, {}),
    ],
)
def test_an_integer_file_rounds_the_same_sums(rng, tmp_path, model, rank, fields, method):
    one, images = artifact(rng, model, 8, rank, fields, **method)
    assert rounding.same_integers(errors(one, images, tmp_path / "one.tflite", "integer"))
    assert "FULLY_CONNECTED" not in kinds(tmp_path / "one.tflite")


@needed
@pytest.mark.parametrize(
    ("variant", "model", "rank", "fields", "method"),
    [
        ("static", "vit_pico", 8, STATIC, {}),
        ("static", "swin_pico", 0, STATIC, {"method": "smoothquant"}),
        ("static", "swin_pico", 8, {"granularity": "per_token", "asymmetric": True}, {}),
        ("dynamic", "vit_pico", 8, DYNAMIC, {}),
        ("weight_only", "vit_pico", 8, STATIC, {}),
    ],
)
def test_files_keep_the_integers_of_the_model(rng, tmp_path, variant, model, rank, fields, method):
    """Every kernel of the model is one of the file's, up to the last bit of a few of its entries."""
    one, images = artifact(rng, model, 8, rank, fields, **method)
    by_image = errors(one, images, tmp_path / "one.tflite", variant)
    assert np.median(by_image) < 0.05
    in_file = [values for values, _ in stored(tmp_path / "one.tflite")]
    for path in one.plan:
        weights = trees.get(one.params, path)
        for name in ("kernel", "u", "v"):
            if name in weights:
                kernel = np.asarray(weights[name]["qvalue"]).T.astype(int)
                same = [np.mean(values == kernel) for values in in_file if values.shape == kernel.shape]
                assert max(same) > 0.999, (path, name)


@needed
def test_static_inputs_lie_on_the_grid_of_the_model(rng, tmp_path):
    """Divided by their scales in float, they are rounded with scale 1 and zero point 0."""
    from ai_edge_litert import schema_py_generated as schema

    one, images = artifact(rng, "vit_pico", 8, 0, STATIC)
    litert.export(one, tmp_path / "one.tflite", "static", images)
    model = schema.ModelT.InitFromPackedBuf((tmp_path / "one.tflite").read_bytes())
    (body,) = model.subgraphs
    grids = []
    for operator in body.operators:
        if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
            grid = body.tensors[operator.inputs[0]].quantization
            grids.append((float(grid.scale[0]), int(grid.zeroPoint[0])))
    assert grids == [(1.0, 0)] * len(one.plan)


@needed
@pytest.mark.parametrize("name", ["vit_pico", "deit3", "swin_padded"])
def test_blocks_by_head_and_identity_blocks(name, rng, tmp_path):
    one, images = test_by_head._float(name, rng)
    want = np.asarray(small.apply(one.model, one.params, images))
    for variant, bound in {"float32": 3e-5, "float16": 5e-3, "dynamic": 0.1}.items():
        litert.export(one, tmp_path / "one.tflite", variant)
        difference = np.abs(litert.load(tmp_path / "one.tflite")(images) - want)
        assert difference.max() < bound * np.abs(want).max()


@needed
@pytest.mark.slow
@pytest.mark.skipif("TESTS_VIT_TINY" not in os.environ, reason="TESTS_VIT_TINY names no timm file of vit_tiny")
def test_real_weights(rng, tmp_path):
    """All twelve blocks, activations as loud as they are."""
    model, params, preprocess = weights.load(f"timm:{os.environ['TESTS_VIT_TINY']}")
    plan = {info.path: LayerPlan() for info in models.spec("vit_tiny", num_classes=1000, image_size=224).layers}
    meta = {"name": "real", "model": "vit_tiny", "num_classes": 1000, "class_names": [], "plan": files.to_json(plan)}
    one = artifacts.Artifact(model, params, preprocess, meta | {"preprocess": preprocess.to_json()})
    images = rng.standard_normal((3, 224, 224, 3)).astype(np.float32)
    assert max(errors(one, images, tmp_path / "one.tflite", "float32")) < 1e-5
    assert max(errors(one, images, tmp_path / "one.tflite", "float16")) < 5e-3
    assert max(errors(one, images, tmp_path / "one.tflite", "dynamic")) < 0.2


@needed
def test_a_file_says_what_it_is(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8)
    one = dataclasses.replace(one, meta={**one.meta, "class_names": [f"bird {index}" for index in range(10)]})
    for variant in ("float32", "float16", "dynamic"):
        litert.export(one, tmp_path / "one.tflite", variant)
        said = litert.metadata(tmp_path / "one.tflite")
        assert said["variant"] == variant
        assert said["plan"] == one.meta["plan"]
        for key in ("preprocess", "class_names"):
            assert said[key] == json.loads(json.dumps(contract(one)[key]))
        assert said["input"]["shape"] == [1, 8, 8, 3]
        assert said["output"]["shape"] == [1, 10]
        assert str(tmp_path).encode() not in (tmp_path / "one.tflite").read_bytes()
        assert b"site-packages" not in (tmp_path / "one.tflite").read_bytes()
    (tmp_path / "other.tflite").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"other\.tflite does not say what it is"):
        litert.metadata(tmp_path / "other.tflite")


@needed
def test_models_without_a_head_give_features(rng, tmp_path):
    one, images = artifact(rng, "vit_pico_depth1_concat", 8, classes=0)
    assert max(errors(one, images, tmp_path / "one.tflite", "float32")) < rounding.ROUNDINGS * rounding.EPS
    assert litert.metadata(tmp_path / "one.tflite")["output"]["name"] == "features"


@needed
def test_the_runtime_of_the_benchmark(rng, tmp_path):
    from lraqvit_jax import runtimes

    one, images = artifact(rng, "vit_pico", 8)
    litert.export(one, tmp_path / "one.tflite")
    job = runtimes.Job(1, len(images), 8, "vit", {}, {"variant": "float32"})
    want = litert.load(tmp_path / "one.tflite")(images)
    assert np.array_equal(runtimes.module("litert").load(tmp_path / "one.tflite", job)(images), want)
    with pytest.raises(ValueError, match="takes no option 'delegate'"):
        runtimes.module("litert").load(tmp_path / "one.tflite", job._replace(options={"delegate": "gpu"}))


def test_what_has_no_file_says_why():
    def plan(**fields):
        return {"blocks_0/mlp/fc1": LayerPlan("quantized", bits=8, **fields)}

    floats = {"blocks_0/mlp/fc1": LayerPlan("low_rank", 8)}
    for variant, one, says in [
        ("static", floats, "no scales of activations; take 'dynamic'"),
        ("integer", floats, "no scales of activations"),
        ("float16", plan(), "has integers, as in blocks_0/mlp/fc1; take 'weight_only'"),
        ("dynamic", plan(granularity="per_tensor"), "static scales in blocks_0/mlp/fc1"),
        ("static", plan(granularity="per_token_dynamic"), "dynamic scales in blocks_0/mlp/fc1"),
        ("weight_only", plan(weight_bits=7), "kernels of 7 bits"),
        ("dynamic", plan(granularity="per_token_dynamic", group=16), "kernels of 8 bits in groups"),
        ("static", plan(attention="uniform"), "uniform attention products"),
        ("integer", plan(asymmetric=True), "centres of activations"),
        ("integer", plan(weight_bits=4), "kernels of 4 bits"),
    ]:
        assert says in litert.obstacle(one, variant)
    assert {variant for variant in LITERT if not litert.obstacle(floats, variant)} == {*LITERT} - {"static", "integer"}
    assert [litert.usual(one) for one in (floats, plan(), plan(granularity="per_token_dynamic"))] == [
        "float32",
        "static",
        "dynamic",
    ]
    with pytest.raises(UserError, match=r"no LiteRT variant 'int8'; .*integer"):
        litert.obstacle(floats, "int8")


def test_missing_packages_are_named_with_their_file(rng, tmp_path, monkeypatch):
    one, _ = artifact(rng, "vit_pico", 8)
    model = lraqvit_jax.Model(one.model, one.params, one.preprocess, one.meta)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in litert.PACKAGES else find(name, *rest)
    )
    with pytest.raises(UserError, match=r"need litert-converter, .*requirements-litert\.txt"):
        model.export_litert(tmp_path / "one.tflite")
    with pytest.raises(UserError, match="no scales of activations"):
        model.export_litert(tmp_path / "one.tflite", "static")
    with pytest.raises(UserError, match="is a directory"):
        model.export_litert(tmp_path)
    assert not (tmp_path / "one.tflite").exists()


@needed
def test_a_model_writes_its_file(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8, 0, STATIC)
    model = lraqvit_jax.Model(one.model, artifacts.host(one.params), one.preprocess, one.meta)
    with pytest.raises(UserError, match="calibrates its outputs on images"):
        model.export_litert(tmp_path / "one.tflite", "static")
    photos = [rng.integers(0, 256, (9, 9, 3), np.uint8) for _ in range(3)]
    path = model.export_litert(tmp_path / "one.tflite", "static", photos)
    assert litert.metadata(path)["variant"] == "static"
