"""`compress` on a small model: its budget, what it is close to, what it keeps, and what it refuses."""

import numpy as np
import pytest

import lraqvit_jax
from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import sources
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.sources import memory
from lraqvit_jax.plan.records import LayerPlan
from tests.unit import small

PREPROCESS = Preprocess(8, crop_pct=1.0, interpolation="bilinear")
FIELDS = {"plan.multiple": 2, "cache_dir": "none"}
OPTIONS = {"fields": FIELDS, "mesh": small.MESH}


@pytest.fixture(scope="module")
def photos():
    return list(np.random.default_rng(1).integers(0, 256, (24, 10, 9, 3), np.uint8))


@pytest.fixture(scope="module")
def params():
    return small.params(None, np.random.default_rng(0))


@pytest.fixture(scope="module")
def made(params, photos, tmp_path_factory):
    """(work directory, what `compress` made in it)"""
    folder = tmp_path_factory.mktemp("compress") / "work"
    options = {"preprocess": PREPROCESS, "budget": 0.6, "workdir": folder, **OPTIONS}
    return folder, lraqvit_jax.compress(small.model(), params, photos, class_names=[*"abcdefghij"], **options)


def test_the_budget_holds_for_the_arrays_themselves(made, params):
    folder, result = made
    dense, found = trees.flatten(params), trees.flatten(lraqvit_jax.load(folder, "low_rank").params)
    encoder = tuple(f"{info.path}/" for info in small.LAYERS if info.compressible)
    whole = sum(leaf.size for path, leaf in dense.items() if path.startswith(encoder))
    matrices = {path: leaf for path, leaf in found.items() if path.endswith(("/kernel", "/u", "/v"))}
    kept = sum(leaf.size for path, leaf in found.items() if _stored_in_encoder(path, result.plan))
    biases = sum(dense[f"{path}bias"].size for path in encoder)  # All are allowed for, beside a share of the kernels.
    assert 0.5 * whole < kept <= 0.6 * (whole - biases) + biases
    assert {layer.bits for layer in result.plan.values()} == {8}
    assert {path.rpartition("/")[0] for path in matrices} == {*result.plan}
    ranks = {path[:-2]: leaf.shape[1] for path, leaf in matrices.items() if path.endswith("/u")}
    assert {path: layer.rank for path, layer in result.plan.items() if layer.rank} == ranks


def _stored_in_encoder(path, plan):
    """Whether a leaf is a parameter of the encoder's linear layers; where a block lies is no parameter."""
    layer, _, leaf = path.rpartition("/")
    return layer in plan and path.startswith("blocks_") and "basis" not in leaf


def test_names_and_preprocessing_go_along(made, photos):
    _, result = made
    assert result.preprocess == PREPROCESS
    assert {name for name, _ in result.predict(photos[0], top=10)[0]} == {*"abcdefghij"}


def test_without_low_rank_the_integers_are_close_to_the_model(params, photos):
    result = lraqvit_jax.compress(small.model(), params, photos, preprocess=PREPROCESS, budget=1, **OPTIONS)
    assert all(layer == LayerPlan("quantized", 0, 8, "per_token_dynamic") for layer in result.plan.values())
    images = np.stack([PREPROCESS(memory.decoded(one)) for one in photos])
    want = np.asarray(small.apply(small.model(), params, images))
    got = result.logits(photos)
    assert 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_a_second_call_in_the_work_directory_finds_everything_there(made, params, photos):
    folder, first = made
    times = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/meta/*")}
    options = {"preprocess": PREPROCESS, "budget": 0.6, "workdir": folder, **OPTIONS}
    again = lraqvit_jax.compress(small.model(), params, [one.copy() for one in photos], **options)
    np.testing.assert_array_equal(again.logits(photos), first.logits(photos))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/*/meta/*")} == times
    with pytest.raises(UserError, match=r"data\.train was 'memory:"):
        lraqvit_jax.compress(small.model(), params, photos[1:], **options)
    with pytest.raises(UserError, match="belongs to other params"):
        lraqvit_jax.compress(small.model(), {**params, "cls_token": params["cls_token"] + 1}, photos, **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"quantizer": "dinamic"}, "did you mean 'dynamic'"),
        ({"bits": 2}, "bits is 2; give 3, 4, 5, 6, 7, 8, or 0"),
        ({"fields": {"plan.multipel": 8}}, r"no field 'plan\.multipel'; did you mean 'plan\.multiple'"),
        ({"class_names": ["one"]}, "1 class_names for 10 classes"),
        ({"images": []}, "no images"),
        ({"images": "folder:no/such/place"}, "no/such/place"),
        ({"params": {}}, "The weights do not fit the model: blocks_0/attn/proj/bias is missing"),
        ({"params": small.params(small.plan("low_rank"), np.random.default_rng(0))}, "u is left over"),
        ({"model": small.model(small.plan("low_rank"))}, "not a dense model"),
        ({"model": 3}, "int is not a dense model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(params, photos, changes, words):
    given = {"model": small.model(), "params": params, "images": photos, "preprocess": PREPROCESS, **changes}
    with pytest.raises(UserError, match=words):
        lraqvit_jax.compress(**given)


@pytest.mark.parametrize(
    "name",
    [
        "vit_pico",
        "vit_nano_depth2_tanh",
        "deit_tiny_distilled_patch8",
        "vit_tiny_patch8_eps1e-12",
        "swin_tiny_window8",
        "vit_pico_dim48_heads3_avg_quick",
        "swin_tiny_dim48_depths2x2_heads3x6",
        "deit_tiny_distilled_patch8_first",
    ],
)
def test_the_name_of_a_model_makes_it_again(name):
    one = models.create(name, num_classes=7, image_size=56)
    assert models.create(models.name_of(one), num_classes=7, image_size=56) == one


@pytest.mark.slow
def test_distillation_brings_the_logits_closer():
    params, source = small.params(None, np.random.default_rng(0)), "embedded:digits?labels=none"
    fields = {**FIELDS, "optimizer.learning_rate": 2e-3, "runs.low_rank.decomposition": "svd"}
    options = {"preprocess": PREPROCESS, "budget": 0.4, "bits": 0, "fields": fields, "mesh": small.MESH}
    results = [lraqvit_jax.compress(small.model(), params, source, steps=steps, **options) for steps in (0, 100)]
    images = sources.load("embedded:digits", "eval")
    held_out = np.stack([PREPROCESS(images[index]["image"]) for index in range(100)])
    want = np.asarray(small.model().apply({"params": params}, held_out))
    errors = [np.mean((one.logits(held_out) - want) ** 2) for one in results]
    assert errors[1] < 0.8 * errors[0]
