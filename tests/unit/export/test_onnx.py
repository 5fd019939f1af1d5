"""ONNX files in onnxruntime against the JAX model on integers."""

import dataclasses
import json

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import sharding
from lraqvit_jax.export import onnx as export
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.plan import files
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import quantize
from lraqvit_jax.weights import artifacts
from tests.unit import small
from tests.unit.export import rounding

IMAGES = 9
FAMILIES = [
    ("vit_pico_tanh", 8, 0),
    ("swin_pico", 8, 8),
    ("swin_pico", 10, 0),  # Windows that do not tile the map, an odd side that is merged.
    ("deit_tiny_distilled_patch8_depth2", 16, 8),
    ("deit3_tiny_patch8_depth2", 16, 0),
    ("vit_pico_dim48_depth3_heads3_avg", 8, 0),
    ("vit_pico_normavg_tanh", 8, 8),
    ("deit_tiny_distilled_patch8_dim24_depth2_first", 16, 0),
    ("vit_pico_quick", 8, 0),
    ("dinov2_giant_dim32_depth2_heads2_mlp24_patch4_reg2", 8, 8),
    ("siglip_base_dim32_depth2_heads2_patch4_reg1", 8, 0),
    ("vit_pico_concat_prenorm1_qknorm1_proj12_spare2", 10, 8),
]
"""Model, image size, rank."""


def artifact(rng, model, size, rank=0, fields=None, classes=10, **method):
    """A model with random parameters, quantized where there are `fields` of its plan; and the images it has seen."""
    layers = models.spec(model, num_classes=classes, image_size=size).layers
    plan = {info.path: LayerPlan("low_rank", rank) if rank and info.compressible else LayerPlan() for info in layers}
    made = models.create(model, num_classes=classes, image_size=size, plan=plan)
    abstract = sharding.abstract_params(made, size, small.MESH)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)
    images = rng.normal(0, 1, (IMAGES, size, size, 3)).astype(np.float32)
    if fields is not None:
        seen = statistics.inputs(made, params, layers, [{"image": images, "mask": np.ones(IMAGES, bool)}], small.MESH)
        plan = {path: dataclasses.replace(layer, form="quantized", bits=8, **fields) for path, layer in plan.items()}
        params, plan, *_ = quantize.quantize(params, plan, list(layers), seen, Quantizer(**method))
    record = Preprocess(size, crop_pct=0.8)
    meta = {"name": "one", "model": model, "num_classes": classes, "class_names": [], "plan": files.to_json(plan)}
    meta |= {"preprocess": record.to_json()}
    return artifacts.Artifact(artifacts.build(meta), params, record, meta), images


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def errors(one, images, path, **options):
    """For each image, the largest difference of the logits, over the largest logit of all."""
    export.export(one, path, **options)
    want = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))
    return np.abs(run(path, images) - want).max(-1) / np.abs(want).max()


def with_small_embeddings(one):
    """LayerNorms of the first block see variances near 1e-5, where their epsilon counts."""
    small_ones = {"patch_embed", "patch_norm", "pos_embed", "cls_token", "dist_token"} & set(one.params)
    scaled = {name: jax.tree.map(lambda leaf: leaf * np.float32(0.01), one.params[name]) for name in small_ones}
    return dataclasses.replace(one, params={**one.params, **scaled})


@pytest.mark.parametrize(("model", "size", "rank"), FAMILIES)
def test_float_models_of_every_family_are_right_up_to_roundings(rng, tmp_path, model, size, rank):
    """Against a transcription in float64; and a file with another epsilon or another GELU is not."""
    one, images = artifact(rng, model, size, rank)
    one = with_small_embeddings(one)
    right, made = rounding.exact(one, images), export.export(one, tmp_path / "one.onnx")
    assert rounding.roundings(run(tmp_path / "one.onnx", images), right) < rounding.ROUNDINGS
    assert rounding.roundings(jax.jit(one.model.apply)({"params": one.params}, images), right) < rounding.ROUNDINGS
    for kind, changes in {
        "LayerNormalization": lambda epsilon: {"epsilon": 10 * epsilon.f},
        "Gelu": lambda kind: {"approximate": "none" if kind.s == b"tanh" else "tanh"},
    }.items():
        wrong = onnx.ModelProto()
        wrong.CopyFrom(made)
        nodes = [node for node in wrong.graph.node if node.op_type == kind]
        if not nodes and one.model.gelu in ("quick", "swiglu"):  # Of products and a sigmoid.
            continue
        for node in nodes:
            (attribute,) = (one for one in node.attribute if one.name in ("epsilon", "approximate"))
            (changed,) = (onnx.helper.make_attribute(*item) for item in changes(attribute).items())
            attribute.CopyFrom(changed)
        onnx.save(wrong, tmp_path / "wrong.onnx")
        assert rounding.roundings(run(tmp_path / "wrong.onnx", images), right) > 10 * rounding.ROUNDINGS


@pytest.mark.parametrize(
    ("model", "width", "fields"),
    [
        ("siglip_base_dim32_depth2_heads2_patch4", 32, {"granularity": "per_token_dynamic"}),
        ("clip_base_dim32_depth1_heads2_patch4_proj12", 12, None),
        ("vit_pico_depth1_concat", 64, None),
        ("deit_tiny_distilled_dim24_depth1_patch8", 24, None),
        ("swin_pico", 32, None),
    ],
)
def test_models_without_a_head_give_features(rng, tmp_path, model, width, fields):
    one, images = artifact(rng, model, 8, 0, fields, classes=0)
    made = export.export(one, tmp_path / "one.onnx")
    assert [output.name for output in made.graph.output] == ["features"]
    got = run(tmp_path / "one.onnx", images)
    assert got.shape == (IMAGES, width)
    if fields is None:
        assert rounding.roundings(got, rounding.exact(one, images)) < rounding.ROUNDINGS
    else:
        assert rounding.same_integers(errors(one, images, tmp_path / "one.onnx"))


@pytest.mark.parametrize(
    ("model", "rank", "fields", "method"),
    [
        ("vit_pico", 0, {"granularity": "per_tensor", "asymmetric": True}, {}),
        pytest.param(
            *("swin_pico", 8, {"granularity": "per_tensor", "weight_bits": 4}, {"method": "smoothquant"}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("swin_pico", 8, {"granularity": "per_token"}, {"method": "smoothquant"}), marks=pytest.mark.slow
        ),
        ("vit_pico", 8, {"granularity": "per_token", "asymmetric": True}, {}),
        ("swin_pico", 8, {"granularity": "per_token_dynamic", "asymmetric": True}, {}),
        ("vit_pico", 8, {"granularity": "per_token_dynamic", "clip": 0.8, "weight_bits": 6}, {"between": "hadamard"}),
        ("vit_pico", 8, {"granularity": "per_token_dynamic", "weight_bits": 4, "group": 16}, {}),
        ("vit_pico_reg1_map_swiglu", 8, {"granularity": "per_token", "asymmetric": True}, {"method": "smoothquant"}),
        ("vit_pico_reg1", 8, {"granularity": "per_token"}, {}),
        pytest.param(
            *("vit_pico", 8, {"granularity": "per_tensor", "weight_bits": 4, "group": 12, "asymmetric": True}, {}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_integers_are_those_of_jax(rng, tmp_path, model, rank, fields, method):
    """Both round the same sums, but for a value on the edge between two integers now and then."""
    one, images = artifact(rng, model, 8, rank, fields, **method)
    assert rounding.same_integers(errors(one, images, tmp_path / "one.onnx", exact=True))


def test_kernels_of_runtimes_come_close_where_scales_are_static(rng, tmp_path):
    """They saturate at -128, the model at -127: only images with a value out there differ."""
    one, images = artifact(rng, "vit_pico", 8, 8, {"granularity": "per_tensor"})
    by_image = errors(one, images, tmp_path / "one.onnx")
    assert np.median(by_image) < rounding.ROUNDINGS * rounding.EPS
    assert by_image.max() < 0.1
    kinds = {node.op_type for node in onnx.load(tmp_path / "one.onnx").graph.node}
    assert {"DequantizeLinear", "MatMulInteger"} <= kinds
    assert "Clip" not in kinds


def test_any_batch_and_what_the_file_says_of_itself(rng, tmp_path):
    one, images = artifact(rng, "swin_pico", 8, 0, {"granularity": "per_token"})
    made = export.export(one, tmp_path / "one.onnx")
    whole = run(tmp_path / "one.onnx", images)
    assert rounding.roundings(run(tmp_path / "one.onnx", images[:1]), whole[:1]) < rounding.ROUNDINGS
    said = {prop.key: prop.value for prop in made.metadata_props}
    assert json.loads(said["preprocess"]) == one.preprocess.to_json()
    assert json.loads(said["plan"]) == one.meta["plan"]
    assert said["model"] == "swin_pico"
    assert made.producer_name == "lraqvit_jax"
    assert [opset.domain for opset in made.opset_import] == [""]


def test_four_bits_take_half_a_byte(rng, tmp_path):
    one, _ = artifact(rng, "vit_nano_depth2", 14, 0, {"granularity": "per_token_dynamic", "weight_bits": 4})
    export.export(one, tmp_path / "one.onnx")
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(one.params))
    nodes = 2e4
    assert stored < (tmp_path / "one.onnx").stat().st_size < 1.3 * stored + nodes


def test_bad_choices_are_named(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8)
    with pytest.raises(UserError, match="no ONNX target 'neon'"):
        export.export(one, tmp_path / "one.onnx", "neon")
    path = "blocks_0/attn/qkv"
    plan = {**one.plan, path: LayerPlan("quantized", bits=8, attention="uniform")}
    odd = dataclasses.replace(one, meta={**one.meta, "plan": files.to_json(plan)})
    with pytest.raises(UserError, match="uniform attention products"):
        export.export(odd, tmp_path / "one.onnx")
