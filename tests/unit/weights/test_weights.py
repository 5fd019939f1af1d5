"""Weight files against a float64 transcription of the model, and every way in which a file can be wrong."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from lraqvit_jax import models, weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.weights import tensors
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.sources import huggingface, timm
from tests.golden import recipe
from tests.unit import numpy_vit

TINY = {"dim": 192, "depth": 12, "patch": 16, "side": 3, "classes": 7}
PICO = {"dim": 32, "depth": 2, "patch": 4, "side": 3, "classes": 7}


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **values)
    else:
        safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path)
    return path


def error(source, want, images, **options):
    """Largest difference to the oracle, over the largest logit."""
    model, params, _ = weights.load(source, **options)
    got = np.asarray(jax.jit(model.apply)({"params": params}, images))
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_48.npz", {}),
        ("deit_tiny_patch16_48.safetensors", {}),
        ("deit_tiny_distilled_patch16_48.safetensors", {"distilled": True}),
        ("deit3_tiny_patch16_48.safetensors", {"layer_scale": True, "embed_class": False}),
        ("vit_tiny_patch8_24.safetensors", {"patch": 8}),
        ("vit_tiny_patch16_mlp_48.safetensors", {"units": 37}),
    ],
)
def test_timm_weights_give_the_logits_of_the_transcription(rng, tmp_path, name, options):
    fields = TINY | options
    values = numpy_vit.random_tensors(rng, **fields)
    path = save(tmp_path / name, values)
    images = rng.standard_normal((2, fields["patch"] * 3, fields["patch"] * 3, 3)).astype(np.float32)
    want = numpy_vit.logits(values, images, heads=3)
    assert error(f"timm:{path}", want, images) < 1e-5
    found = weights.read(f"timm:{path}")
    assert found.model.startswith(name.split("_patch")[0])
    assert found.num_classes == 7
    assert found.sha256 == tensors.sha256(path)
    mean = (0.5, 0.5, 0.5) if name.startswith("vit") else timm.IMAGENET["mean"]
    assert found.preprocess.mean == mean


def test_switches_of_jax_do_not_change_what_is_read(rng, tmp_path):
    path = save(tmp_path / "vit_tiny_patch16_48.npz", numpy_vit.random_tensors(rng, **TINY))
    want = weights.read(f"timm:{path}", image_size=64).params
    strict = (jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.transfer_guard("disallow"))
    with jax.enable_x64(True), strict[0], strict[1], strict[2]:
        got = weights.read(f"timm:{path}", image_size=64).params
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture(scope="module")
def small_stream():
    """LayerNorms see variances near 1e-4, so that their epsilon shows: tensors, images, our logits."""
    shapes = {key: value.shape for key, value in numpy_vit.random_tensors(np.random.default_rng(0), **PICO).items()}
    values = recipe.weights(shapes, seed=5, stream=0.01)
    images = recipe.images(2, 12, seed=0)
    found = timm.from_tensors(values, Hints("vit"), "a test", "", timm.HALF)
    model = models.create(found.model, num_classes=7, image_size=12)
    logits = jax.jit(model.apply)({"params": found.params}, images)
    np.testing.assert_allclose(logits, numpy_vit.logits(values, images, heads=2), atol=1e-4, rtol=0)
    return values, images, logits


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 1e-5},
        {"eps": 1e-12},
        {"gelu": numpy_vit.tanh_gelu},
        {"heads": 4},
        {"bias": "attn.qkv.bias"},
        {"bias": "attn.proj.bias"},
        {"bias": "mlp.fc1.bias"},
        {"bias": "norm1.bias"},
    ],
    ids=lambda wrong: " ".join(getattr(item, "__name__", str(item)) for item in next(iter(wrong.items()))),
)
def test_a_wrong_eps_gelu_head_count_or_bias_is_seen(small_stream, wrong):
    """The tolerance of 1e-4 is tight enough to tell, by a margin."""
    values, images, logits = small_stream
    options = {"heads": 2, **wrong}
    end = options.pop("bias", "none")
    values = {name: value * (not name.endswith(end)) for name, value in values.items()}
    assert np.abs(logits - numpy_vit.logits(values, images, **options)).max() > 3e-4


def transformers_names(values, new_style):
    """timm's names to those of transformers 4 or 5."""
    renamed = {}
    for name, value in values.items():
        stem = name.replace("blocks.", "vit.layers." if new_style else "vit.encoder.layer.")
        if ".attn.qkv." in name:
            for letter, part in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                new = f".attention.{letter[0]}_proj." if new_style else f".attention.attention.{letter}."
                renamed[stem.replace(".attn.qkv.", new)] = part
            continue
        for old, new in {
            ".attn.proj.": ".attention.o_proj." if new_style else ".attention.output.dense.",
            ".mlp.fc1.": ".mlp.fc1." if new_style else ".intermediate.dense.",
            ".mlp.fc2.": ".mlp.fc2." if new_style else ".output.dense.",
            ".norm1.": ".layernorm_before.",
            ".norm2.": ".layernorm_after.",
            "head.": "classifier.",
            "patch_embed.proj.": "vit.embeddings.patch_embeddings.projection.",
            "cls_token": "vit.embeddings.cls_token",
            "pos_embed": "vit.embeddings.position_embeddings",
        }.items():
            stem = stem.replace(old, new)
        renamed["vit.layernorm" + stem[4:] if stem.startswith("norm.") else stem] = value
    return renamed


@pytest.mark.parametrize("new_style", [False, True], ids=["4", "5"])
def test_transformers_weights_give_the_same_logits(rng, tmp_path, new_style):
    values = numpy_vit.random_tensors(rng, **TINY)
    save(tmp_path / "model.safetensors", transformers_names(values, new_style))
    labels = {str(index): f"class {index}" for index in range(7)}
    config = {"model_type": "vit", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "id2label": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    images = rng.standard_normal((2, 48, 48, 3)).astype(np.float32)
    want = numpy_vit.logits(values, images, heads=3, eps=1e-12)
    assert error(f"huggingface:{tmp_path}", want, images) < 1e-4
    found = weights.read(f"huggingface:{tmp_path}")
    assert (found.model, found.class_names[3]) == ("vit_tiny_eps1e-12", "class 3")
    assert found.preprocess == Preprocess(48, 1.0, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "squash")
    for field, value, word in (
        ("model_type", "beit", "beit"),
        ("hidden_act", "relu", "relu"),
        ("layer_norm_eps", 0, "epsilon 0"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(UserError, match=word):
            weights.read(f"huggingface:{tmp_path}")


def test_transformers_distilled_deit_gives_the_same_parameters(rng, tmp_path):
    values = numpy_vit.random_tensors(rng, **TINY, distilled=True)
    want = weights.read(f"timm:{save(tmp_path / 'deit_tiny_distilled_48.npz', values)}")
    names = {
        "vit.": "deit.",
        "classifier.": "cls_classifier.",
        "head_dist.": "distillation_classifier.",
        "dist_token": "deit.embeddings.distillation_token",
    }
    renamed = {}
    for name, value in transformers_names(values, True).items():
        heads = {key: new for key, new in names.items() if name.startswith(key)}
        renamed[functools.reduce(lambda text, pair: text.replace(*pair, 1), heads.items(), name)] = value
    save(tmp_path / "model.safetensors", renamed)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deit"}))
    found = weights.read(f"huggingface:{tmp_path}")
    assert (found.model, found.preprocess.mean) == ("deit_tiny_distilled_eps1e-12", timm.IMAGENET["mean"])
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)


def test_another_image_size_resamples_the_positions_and_another_class_count_makes_a_new_head(rng, tmp_path):
    values = numpy_vit.random_tensors(rng, **TINY)
    path = save(tmp_path / "vit_tiny_patch16_48.npz", values)
    model, params, preprocess = weights.load(f"timm:{path}", num_classes=3, image_size=80)
    assert preprocess.size == 80
    assert params["pos_embed"].shape == (1, 26, 192)
    np.testing.assert_array_equal(params["pos_embed"][:, 0], values["pos_embed"][:, 0])
    assert not np.asarray(jax.jit(model.apply)({"params": params}, np.ones((1, 80, 80, 3), np.float32))).any()
    assert model.num_classes == 3


def test_resampling_keeps_a_constant_and_reverses_with_the_grid(rng):
    flat = np.concatenate([np.full((1, 1, 4), 9.0), np.full((1, 49, 4), 2.0)], axis=1).astype(np.float32)
    np.testing.assert_allclose(weights.resample(flat, 100)[0, 1:], 2, rtol=1e-6)
    assert weights.resample(flat, 100).shape == (1, 101, 4)
    grid = rng.standard_normal((1, 49, 4)).astype(np.float32)
    there = weights.resample(grid, 100)
    np.testing.assert_allclose(weights.resample(grid[:, ::-1], 100), there[:, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("blocks.4.attn.proj.bias"), ["blocks.4.attn.proj.bias"]),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), ["extra is left over"]),
        (lambda t: t.update({"norm.bias": np.zeros(5, np.float32)}), ["norm/bias", "(5,)"]),
        (lambda t: [t.pop(name) for name in ("norm.bias", "norm.weight")], ["norm.bias", "norm.weight"]),
        (lambda t: t.pop("head.weight"), ["head.weight"]),
        (lambda t: t.update(cls_token=np.zeros((1, 1, 100), np.float32)), ["100 features"]),
    ],
)
def test_tensors_that_do_not_fit_are_all_named(rng, tmp_path, change, words):
    values = numpy_vit.random_tensors(rng, **TINY)
    change(values)
    path = save(tmp_path / "vit_tiny_patch16_48.npz", values)
    with pytest.raises(UserError) as caught:
        weights.read(f"timm:{path}")
    assert all(word in str(caught.value) for word in words)


def test_files_that_are_not_weights_are_named(rng, tmp_path):
    whole = save(tmp_path / "vit_tiny.safetensors", numpy_vit.random_tensors(rng, **TINY))
    cut = tmp_path / "vit_cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:1000])
    objects = tmp_path / "vit_objects.npz"
    np.savez(objects, x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "vit_text.npz").write_text("no archive")
    (tmp_path / "vit.pth").write_bytes(b"pickle")
    for name, word in {
        "vit_cut.safetensors": "cannot be read",
        "vit_objects.npz": "cannot be read",
        "vit_text.npz": "cannot be read",
        "vit.pth": "convert",
        "absent.npz": "does not exist",
    }.items():
        with pytest.raises(UserError, match=word):
            weights.read(f"timm:{tmp_path / name}")


def test_a_name_without_statistics_is_refused_unless_a_card_has_them(rng, tmp_path):
    values = numpy_vit.random_tensors(rng, **TINY)
    path = save(tmp_path / "mine.npz", values)
    with pytest.raises(UserError, match="mean and std"):
        weights.read(f"timm:{path}")
    card = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1], "crop_pct": 0.95, "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "deit_tiny_patch16_48", "pretrained_cfg": card}))
    found = weights.read(f"timm:{path}")
    assert found.model == "deit_tiny"
    assert found.preprocess == Preprocess(48, 0.95, "bilinear", (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))


def test_a_hub_id_that_cannot_be_had_is_one_sentence(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="download it"):
        weights.read("timm:nobody/no_such_model@main")


def test_renaming_fills_a_missing_qkv_bias_with_zeros(rng):
    values = transformers_names(numpy_vit.random_tensors(rng, **TINY | {"depth": 1}), True)
    plain = {name: value for name, value in values.items() if "_proj.bias" not in name or "o_proj" in name}
    assert not huggingface.rename(plain, qkv_bias=False)["blocks.0.attn.qkv.bias"].any()
