"""Exported tensors, read back by our reader of timm's files and by a float64 transcription that knows names alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lraqvit_jax import models, weights
from lraqvit_jax.base import trees
from lraqvit_jax.data import preprocess
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import sharding
from lraqvit_jax.export import safetensors as export
from lraqvit_jax.options import quant
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.plan import files
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import quantize
from lraqvit_jax.stages.evaluate import other_params
from lraqvit_jax.weights import artifacts
from tests.unit import numpy_vit, small
from tests.unit.export import rounding

NAMES = [f"digit {digit}" for digit in range(10)]


def artifact(plan, params, model="vit_pico", size=8):
    record = Preprocess(size, crop_pct=0.8)
    meta = {"model": model, "num_classes": 10, "class_names": NAMES, "plan": files.to_json(plan)}
    meta |= {"preprocess": record.to_json()}
    return artifacts.Artifact(artifacts.build(meta), params, record, meta)


def logits(one, images):
    return np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))


def errors(one, path, images, **options):
    """For each image, the largest difference of a float64 transcription, on the file, to the artefact; over the largest
    logit of all."""
    export.save(one, path)
    right = numpy_vit.logits(safetensors.numpy.load_file(path), images, heads=2, **options)
    return np.abs(logits(one, images) - right).max(-1) / np.abs(right).max()


def random_params(rng, model, size):
    abstract = sharding.abstract_params(models.create(model, num_classes=10, image_size=size), size, small.MESH)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_pico", 8), ("deit_tiny_distilled_patch8", 16), ("vit_tiny_patch8", 16), ("swin_pico", 16)],
)
def test_a_dense_artefact_is_a_timm_state_dict(rng, tmp_path, name, size):
    params = random_params(rng, name, size)
    layers = models.spec(name, num_classes=10, image_size=size).layers
    path = tmp_path / f"{name}_{size}.safetensors"
    export.save(artifact(plan_lib.dense(layers), params, name, size), path)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, size, size]}}))
    found = weights.read(f"timm:{path}")
    assert (found.model, found.preprocess.size) == (name, size)
    got, want = trees.flatten(found.params), trees.flatten(params)
    assert set(got) == set(want)
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_timms_names_and_layouts(rng):
    named = export.tensors(artifact(small.plan(), small.params(small.plan(), rng)))
    assert named["patch_embed.proj.weight"].shape == (32, 3, 4, 4)
    assert named["blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert {"blocks.0.norm1.weight", "norm.bias", "cls_token", "pos_embed", "head.bias"} <= set(named)
    for ours, timms in {
        "layers_1/downsample/reduction": "layers.1.downsample.reduction",
        "layers_0/blocks_11/attn/relative_position_bias_table": "layers.0.blocks.11.attn.relative_position_bias_table",
        "patch_norm/scale": "patch_embed.norm.weight",
        "blocks_0/ls1_gamma": "blocks.0.ls1.gamma",
        "head": "head.fc",
    }.items():
        assert export.timm_name(ours, swin=True) == timms
    assert export.timm_name("head", swin=False) == "head"


def test_a_deit3_keeps_its_logits_in_timms_form_without_a_position_for_the_class_token(rng, tmp_path):
    layers = models.spec("deit3_tiny_patch8", num_classes=10, image_size=16).layers
    params = random_params(rng, "deit3_tiny_patch8", 16)
    one = artifact(plan_lib.dense(layers), params, "deit3_tiny_patch8", 16)
    path, images = tmp_path / "deit3_tiny_patch8_16.safetensors", rng.standard_normal((2, 16, 16, 3), np.float32)
    export.save(one, path)
    assert safetensors.numpy.load_file(path)["pos_embed"].shape == (1, 4, 192)
    model, again, _ = weights.load(f"timm:{path}")
    assert np.any(params["pos_embed"][:, 0])
    np.testing.assert_array_equal(jax.jit(model.apply)({"params": again}, images), logits(one, images))


@pytest.mark.parametrize("form", ["low_rank", "reparam"])
def test_pairs_are_two_linear_layers(rng, tmp_path, form):
    plan = small.plan(form) | {"patch_embed": LayerPlan(form, 5)}
    params, path = small.params(plan, rng), tmp_path / "pairs.safetensors"
    for name in ("patch_embed", "pos_embed", "cls_token"):  # Variances near 1e-5, where an epsilon counts.
        params[name] = jax.tree.map(lambda leaf: leaf * np.float32(0.01), params[name])
    one, images, tolerance = artifact(plan, params), small.images(rng), rounding.ROUNDINGS * rounding.EPS
    assert max(errors(one, path, images)) < tolerance
    assert max(errors(one, path, images, gelu=numpy_vit.tanh_gelu)) > 10 * tolerance
    assert max(errors(one, path, images, eps=1e-5)) > 10 * tolerance
    shapes = {name: value.shape for name, value in safetensors.numpy.load_file(path).items()}
    assert shapes["blocks.0.attn.qkv.0.weight"] == (small.RANK, 32)
    assert shapes["blocks.0.attn.qkv.1.weight"] == (96, small.RANK)
    assert shapes["blocks.0.attn.qkv.1.bias"] == (96,)
    assert "blocks.0.attn.qkv.0.bias" not in shapes
    assert shapes["patch_embed.proj.0.weight"] == (5, 3, 4, 4)


def quantized(rng, plan, method):
    float_plan = plan_lib.low_rank(plan)
    params, images = small.params(float_plan, rng), small.images(rng)
    seen = small.seen(float_plan, params, images)
    made = quantize.quantize(params, plan, small.LAYERS, seen, Quantizer(method=method))
    return artifact(made.plan, artifacts.host(made.params)), images


@pytest.mark.parametrize("method", ["naive", "smoothquant"])
@pytest.mark.parametrize("rank", [0, small.RANK], ids=["dense", "pairs"])
@pytest.mark.parametrize("granularity", quant.GRANULARITIES)
def test_int8_layers_follow_the_documented_formula(rng, tmp_path, granularity, rank, method):
    plan = {
        path: LayerPlan("quantized", layer.rank, 8, granularity, clip=0.9)
        for path, layer in small.quantized_plan(rank, granularity).items()
    }
    one, images = quantized(rng, plan, method)
    path = tmp_path / "int8.safetensors"
    assert rounding.same_integers(errors(one, path, images, clip=0.9))
    # The test can tell: another scale of one layer is seen.
    named = safetensors.numpy.load_file(path)
    first = "blocks.0.mlp.fc2.0" if rank else "blocks.0.mlp.fc2"
    assert named[f"{first}.weight"].dtype == np.int8
    assert named[f"{first}.weight_scale"].shape == (len(named[f"{first}.weight"]), 1)
    assert (f"{first}.input_smooth" in named) == (method == "smoothquant")
    scale = named.get(f"{first}.input_scale")
    shapes = {"per_tensor": (), "per_token": (5, 1), "per_token_dynamic": None}
    assert (None if scale is None else scale.shape) == shapes[granularity]
    named[f"{first}.weight_scale"] *= 1.05
    changed = numpy_vit.logits(named, images, heads=2, clip=0.9)
    assert not rounding.same_integers(np.abs(changed - logits(one, images)).max(-1) / np.abs(changed).max())


NARROW = [
    (0, {"weight_bits": 4}),
    (small.RANK, {"bits": 6, "asymmetric": True}),
    (small.RANK, {"bits": 4, "group": 8}),
    pytest.param(0, {"weight_bits": 6, "group": 16, "asymmetric": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("rank", "fields"), NARROW, ids=str)
def test_packed_and_asymmetric_layers_follow_the_documented_formula(rng, tmp_path, rank, fields):
    plan = {
        path: dataclasses.replace(layer, **fields) for path, layer in small.quantized_plan(rank, "per_token").items()
    }
    one, images = quantized(rng, plan, "smoothquant")
    options = {"bits": fields.get("bits", 8), "group": fields.get("group", 0)}
    options["weight_bits"] = fields.get("weight_bits", options["bits"])
    path = tmp_path / "narrow.safetensors"
    assert rounding.same_integers(errors(one, path, images, **options))
    named = safetensors.numpy.load_file(path)
    packed = [name for name in named if name.endswith("weight_packed")]
    assert len(packed) == sum(2 if layer.rank else 1 for layer in plan.values())
    assert ("blocks.0.attn.proj.input_center" in named or "blocks.0.attn.proj.0.input_center" in named) == (
        "asymmetric" in fields
    )


def test_the_metadata_rebuilds_the_model(rng, tmp_path):
    plan = small.plan("low_rank")
    one, path = artifact(plan, small.params(plan, rng)), tmp_path / "pairs.safetensors"
    export.save(one, path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "lraqvit_jax 1"
    assert files.from_json(json.loads(metadata["plan"])) == plan
    assert preprocess.from_json(json.loads(metadata["preprocess"])) == one.preprocess
    assert json.loads(metadata["class_names"]) == NAMES
    meta = {name: json.loads(metadata[name]) for name in ("plan", "preprocess", "num_classes")}
    assert artifacts.build({"model": metadata["model"], **meta}) == one.model


@pytest.mark.parametrize("bits", [8, 4])
def test_files_are_as_large_as_the_table_says(rng, tmp_path, bits):
    """Of a ViT-Tiny of 5.2 M: the exported file within 3 %; orbax adds up to 0.45 MB of metadata."""
    spec = models.spec("vit_tiny_patch16", num_classes=1000, image_size=224)
    one = LayerPlan("quantized", bits=8, weight_bits=bits, granularity="per_token_dynamic")
    planned = {
        info.path: one
        if not info.path.startswith("blocks")
        else dataclasses.replace(one, rank=144 if "mlp" in info.path else 112)
        for info in spec.layers
    }
    model = models.create("vit_tiny_patch16", num_classes=1000, image_size=224, plan=planned)
    abstract = sharding.abstract_params(model, 224, small.MESH)

    def random(leaf):
        if leaf.dtype == np.float32:
            return rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        return rng.integers(-127, 128, leaf.shape).astype(leaf.dtype)

    made = artifact(planned, jax.tree.map(random, abstract), "vit_tiny_patch16", 224)
    made.meta["num_classes"], made.meta["class_names"] = 1000, None
    cost = total_cost(planned, spec.layers).bytes + 4 * other_params(made.params, planned)
    export.save(made, tmp_path / "file.safetensors")
    assert abs((tmp_path / "file.safetensors").stat().st_size / cost - 1) < 0.03
    artifacts.save_artifact(tmp_path / "made", made.params, made.meta)
    stored = sum(path.stat().st_size for path in (tmp_path / "made").rglob("*") if path.is_file())
    assert stored < cost + 4.5e5
