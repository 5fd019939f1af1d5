"""Files that are read back: the artefact that was written, to the bit, of every form and layout."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import lraqvit_jax
from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.export import safetensors as export
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.records import LayerPlan
from tests.unit import small
from tests.unit.export.test_safetensors import artifact, logits, quantized, random_params


def same(got, want):
    """Whether two trees of arrays are one, types and all."""
    got, want = trees.flatten(got), trees.flatten(want)
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_pico", 8),
        ("deit_tiny_distilled_patch8", 16),
        ("swin_pico", 16),
        (models.renamed("vit_pico", {"registers": 4, "class_token": True}), 8),
    ],
)
def test_a_dense_file_is_read_back(rng, tmp_path, name, size):
    layers = models.spec(name, num_classes=10, image_size=size).layers
    params = random_params(rng, name, size)
    export.save(artifact(plan_lib.dense(layers), params, name, size), tmp_path / "model.safetensors")
    found = export.load(tmp_path / "model.safetensors")
    if "reg_token" not in params:  # With registers the class token has its position added.
        same(found.params, params)
    images = rng.standard_normal((2, size, size, 3), np.float32)
    one = artifact(plan_lib.dense(layers), params, name, size)
    np.testing.assert_array_equal(logits(found, images), logits(one, images))
    assert (found.meta["model"], found.preprocess.size, found.meta["num_classes"]) == (name, size, 10)


def test_a_class_token_with_its_position_added_gives_the_same_logits(rng, tmp_path):
    layers = models.spec("deit3_tiny_patch8", num_classes=10, image_size=16).layers
    params = random_params(rng, "deit3_tiny_patch8", 16)
    one = artifact(plan_lib.dense(layers), params, "deit3_tiny_patch8", 16)
    export.save(one, tmp_path / "model.safetensors")
    images = rng.standard_normal((2, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(logits(export.load(tmp_path / "model.safetensors"), images), logits(one, images))


@pytest.mark.parametrize("form", ["low_rank", "reparam"])
def test_pairs_are_read_back(rng, tmp_path, form):
    plan = small.plan(form) | {"patch_embed": LayerPlan(form, 5)}
    one = artifact(plan, small.params(plan, rng))
    export.save(one, tmp_path / "model.safetensors")
    found, images = export.load(tmp_path / "model.safetensors"), small.images(rng)
    assert {layer.form for layer in found.plan.values()} == {"dense", "low_rank"}
    wanted = logits(one, images)
    np.testing.assert_allclose(logits(found, images), wanted, atol=1e-5 * np.abs(wanted).max())
    if form == "low_rank":
        same(found.params, one.params)


def test_identity_blocks_and_heads_are_read_back(rng, tmp_path):
    block = blocks.blocks(small.LAYERS)[0]
    whole = blocks.full(block)
    sizes = blocks.Sizes(whole.score // 2, whole.value // 2, whole.width // 2, 8, 8)
    plan = {**small.plan(), **blocks.plan_of(small.LAYERS, {block.path: sizes})}
    plan = {path: layer for path, layer in plan.items() if path != f"{block.path}/attn/qkv"}
    params = trees.flatten(small.params(plan, rng))
    for path, leaf in params.items():
        if path.endswith("basis"):
            params[path] = np.sort(rng.permutation(8)[: leaf.shape[-1]]).astype(np.int16) + np.zeros(
                leaf.shape, np.int16
            )
    params = trees.nest(params)
    assert any(path.endswith("basis") for path in trees.flatten(params))
    export.save(artifact(plan, params), tmp_path / "model.safetensors")
    same(export.load(tmp_path / "model.safetensors").params, params)


FIELDS = [
    ("per_tensor", 0, {}),
    ("per_token", small.RANK, {"asymmetric": True}),
    ("per_token_dynamic", small.RANK, {"weight_bits": 6, "group": 16}),
    pytest.param("per_token", 0, {"bits": 4, "group": 8}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("granularity", "rank", "fields"), FIELDS, ids=str)
def test_integers_are_read_back(rng, tmp_path, granularity, rank, fields):
    plan = {
        path: dataclasses.replace(layer, **fields) for path, layer in small.quantized_plan(rank, granularity).items()
    }
    one, _ = quantized(rng, plan, "smoothquant")
    export.save(one, tmp_path / "model.safetensors")
    found = export.load(tmp_path / "model.safetensors")
    same(found.params, one.params)
    assert (found.plan, found.preprocess, found.meta["class_names"]) == (
        one.plan,
        one.preprocess,
        one.meta["class_names"],
    )


def test_the_api_reads_a_folder_and_an_expanded_file(rng, tmp_path):
    plan = small.plan("low_rank")
    one, images = artifact(plan, small.params(plan, rng)), small.images(rng)
    export.save(one, tmp_path / "model.safetensors", "expanded")
    model = lraqvit_jax.load(tmp_path)
    wanted = logits(one, images)
    got = np.asarray(jax.jit(model.model.apply)({"params": model.params}, images))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    assert model.class_names == one.meta["class_names"]


def test_a_file_of_somebody_else_and_one_that_lost_something_are_refused(rng, tmp_path):
    one, path = artifact(small.plan(), small.params(small.plan(), rng)), tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="not of lraqvit_jax 1; timm's own files"):
        lraqvit_jax.load(tmp_path)
    export.save(one, path)
    with safetensors.safe_open(path, "numpy") as file:
        said = file.metadata()
    values = safetensors.numpy.load_file(path)
    for changed, words in (
        ({name: value for name, value in values.items() if name != "norm.bias"}, "differ in norm.bias"),
        (values | {"more": values["norm.bias"]}, "differ in more"),
        (values | {"norm.bias": values["norm.bias"][1:]}, "has norm.bias as float32 [(]31,[)]"),
        (values | {"norm.bias": values["norm.bias"].astype(np.float64)}, "has norm.bias as float64"),
    ):
        safetensors.numpy.save_file(changed, path, said)
        with pytest.raises(UserError, match=words):
            lraqvit_jax.load(tmp_path)
    safetensors.numpy.save_file(values, path, said | {"plan": json.dumps({"head": {"form": "none"}})})
    with pytest.raises(UserError):
        lraqvit_jax.load(tmp_path)
