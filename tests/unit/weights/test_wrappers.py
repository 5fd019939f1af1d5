"""Common forms of checkpoints: the same parameters, whatever training code has put round them."""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lraqvit_jax import weights
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.weights import convert, tensors, wrappers
from lraqvit_jax.weights.sources import timm
from tests.unit import numpy_swin, numpy_vit
from tests.unit.weights.test_big_vision import BIG_VISION, flax_names
from tests.unit.weights.test_weights import transformers_names

PICO = {"dim": 32, "depth": 2, "patch": 4, "side": 2, "classes": 5}


@pytest.fixture
def values(rng):
    return numpy_vit.random_tensors(rng, **PICO)


def save(folder, named):
    plain = {name: np.ascontiguousarray(value) for name, value in named.items()}
    safetensors.numpy.save_file(plain, pathlib.Path(folder) / "vit_pico.safetensors")
    return f"timm:{folder}/vit_pico.safetensors"


def prefixed(values, prefix):
    return {prefix + name: value for name, value in values.items()}


def assert_same(got, want):
    got, want = trees.flatten(got.params), trees.flatten(want.params)
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.fixture
def plain(tmp_path, values):
    (tmp_path / "plain").mkdir()
    return weights.read(save(tmp_path / "plain", values))


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "timm_model.", "state_dict.", "encoder.", "module.model.", "a.b.c._orig_mod."]
)
def test_prefixes_are_taken_off(tmp_path, values, plain, prefix):
    assert_same(weights.read(save(tmp_path, prefixed(values, prefix))), plain)


def test_the_head_may_stand_outside(tmp_path, values, plain):
    apart = {(name if name.startswith("head") else f"model.encoder.{name}"): value for name, value in values.items()}
    assert_same(weights.read(save(tmp_path, apart)), plain)
    renamed = {name.replace("head.", "model.classifier."): value for name, value in apart.items()}
    assert_same(weights.read(save(tmp_path, renamed)), plain)


def test_averages_are_taken_before_the_last_weights_and_it_is_said(tmp_path, values, plain, capsys):
    last = {f"state_dict.{name}": 2 * value for name, value in values.items()}
    training = {"optimizer.state.0.exp_avg": np.ones(3), "epoch": np.ones(1), "n_averaged": np.ones(1)}
    source = save(tmp_path, {**last, **prefixed(values, "state_dict_ema."), **training})
    assert_same(weights.read(source), plain)
    said = capsys.readouterr().err
    assert "'state_dict_ema.' are taken" in said
    assert "does not use" in said


def test_several_models_are_refused_with_their_names(tmp_path, values):
    source = save(tmp_path, {**prefixed(values, "student."), **prefixed(values, "teacher.")})
    with pytest.raises(UserError, match=r"2 models, below 'student\.', 'teacher\.'"):
        weights.read(source)
    with pytest.raises(UserError, match=r"two tensors for norm\.bias"):
        weights.read(save(tmp_path, prefixed(values, "model.") | {"norm.bias": np.zeros(32)}))


def test_tensors_of_pretraining_are_named_and_left_out_and_others_are_refused(tmp_path, values, plain, capsys):
    more = {"mask_token": np.ones((1, 1, 32)), "decoder_blocks.0.x": np.ones(2)}
    assert_same(weights.read(save(tmp_path, values | more)), plain)
    assert "does not use decoder_blocks.0.x, mask_token" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"rope\.frequencies is left over"):
        weights.read(save(tmp_path, values | {"rope.frequencies": np.ones((1, 1, 32))}))
    with pytest.raises(UserError, match="5 positions for 2 tokens"):
        weights.read(save(tmp_path, values | {"reg_token": np.ones((1, 1, 32))}))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_become_float32(tmp_path, values, dtype):
    found = weights.read(save(tmp_path, {name: value.astype(dtype) for name, value in values.items()}))
    kernel = found.params["head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, values["head.weight"].astype(dtype).astype(np.float32).T)


def sharded(folder, named):
    """As transformers splits a file."""
    names = sorted(named)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        safetensors.numpy.save_file({name: np.ascontiguousarray(named[name]) for name in inside}, folder / file)
    weight_map = {name: file for file, inside in parts.items() for name in inside}
    (folder / tensors.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards_are_one_file(tmp_path, values, plain):
    weight_map = sharded(tmp_path, transformers_names(values, True))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "layer_norm_eps": 1e-6}))
    found = weights.read(f"huggingface:{tmp_path}")
    assert_same(found, plain)
    assert len(found.sha256) == 64
    for change, words in (
        ({"vit.layernorm.bias": "../secret.safetensors"}, "weight_map"),
        ({"vit.layernorm.bias": "model-00003.safetensors"}, "does not exist"),
        ({"more": "model-00001-of-00002.safetensors"}, "differ, first in more"),
    ):
        (tmp_path / tensors.INDEX).write_text(json.dumps({"weight_map": weight_map | change}))
        with pytest.raises(UserError, match=words):
            weights.read(f"huggingface:{tmp_path}")


@pytest.mark.parametrize("prefix", ["opt/target/", "params/", "target/"])
def test_big_vision_s_wrappers(tmp_path, values, prefix):
    flat = flax_names(values, BIG_VISION)
    more = {f"opt/0/mu/{name}": value for name, value in flat.items()} if prefix == "params/" else {}
    np.savez(tmp_path / "a.npz", **flat)
    np.savez(tmp_path / "b.npz", **prefixed(flat, prefix), **more)
    assert_same(weights.read(f"big_vision:{tmp_path}/b.npz"), weights.read(f"big_vision:{tmp_path}/a.npz"))


def test_big_vision_s_heads_are_those_of_the_kernel(tmp_path, values):
    flat = flax_names(values, BIG_VISION)
    for name, value in flat.items():
        if "MultiHeadDotProductAttention" in name:
            flat[name] = value.reshape(*[8 if side == 2 else 4 if side == 16 else side for side in value.shape])
    np.savez(tmp_path / "a.npz", **flat)
    assert weights.read(f"big_vision:{tmp_path}/a.npz").model == "vit_pico_heads8_tanh"


def test_a_distilled_deit_with_one_head_answers_from_its_class_token(rng, tmp_path):
    values = numpy_vit.random_tensors(rng, **PICO, distilled=True)
    single = {name: value for name, value in values.items() if not name.startswith("head_dist")}
    model, params, preprocess = weights.load(save(tmp_path, single))
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    want = numpy_vit.logits(single, images, heads=2)
    np.testing.assert_allclose(model.apply({"params": params}, images), want, atol=1e-5)
    assert preprocess.size == 8


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_backbone_takes_a_new_head_and_is_refused_without(rng, tmp_path, values, family):
    if family == "swin":
        shapes = numpy_swin.shapes(dim=24, depths=(1, 2), heads=(2, 4), patch=2, window=4, side=16, classes=5)
        values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        (tmp_path / "config.json").write_text('{"pretrained_cfg": {"input_size": [3, 32, 32]}}')
    source = save(tmp_path, {name: value for name, value in values.items() if not name.startswith("head")})
    model, params, preprocess = weights.load(source, num_classes=3)
    assert model.apply({"params": params}, np.ones((2, preprocess.size, preprocess.size, 3))).shape == (2, 3)
    with pytest.raises(UserError, match=r"without a head.*num_classes"):
        weights.read(source)


def test_one_logit_is_refused(rng, tmp_path):
    source = save(tmp_path, numpy_vit.random_tensors(rng, **PICO | {"classes": 1}))
    with pytest.raises(UserError, match="one logit"):
        weights.read(source)
    assert weights.read(source, num_classes=2).num_classes == 2


def test_a_pickle_in_a_folder_is_refused_with_what_converts_it(tmp_path):
    (tmp_path / "pytorch model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"weights convert '.*pytorch model\.bin'"):
        weights.read(f"timm:{tmp_path}")


def test_what_is_no_model_is_named_as_it_is():
    named = {"features.0.weight": np.ones(2)}
    assert wrappers.unwrapped(named, timm.HALLMARK, "x") == named


def test_converting_needs_torch_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="needs torch"):
        convert.command([f"{tmp_path}/a.pth"])
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        convert.command([f"{tmp_path}/a.pth", "b.npz"])
