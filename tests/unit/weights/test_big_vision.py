"""Checkpoints of big_vision and vision_transformer, made from timm's tensors, against the float64 transcription."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lraqvit_jax import weights
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.weights import tensors
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.sources import timm
from tests.unit import numpy_vit

HEADS = 2
PICO = {"dim": 32, "depth": 2, "patch": 4, "side": 3, "classes": 7}
BIG_VISION = {
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_1",
    "attn": "MultiHeadDotProductAttention_0",
    "mlp": "MlpBlock_0",
    "pos_embed": "pos_embedding",
}
AUGREG = {
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_2",
    "attn": "MultiHeadDotProductAttention_1",
    "mlp": "MlpBlock_3",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
}


def flax_names(values, names):
    """timm's tensors as Flax has them: kernels (in, out), heads apart, q, k and v apart."""
    dim, found = values["cls_token"].shape[-1], {"cls": values["cls_token"], names["pos_embed"]: values["pos_embed"]}
    for key, value in values.items():
        *where, layer, end = ["", *key.split(".")]
        block = f"Transformer/encoderblock_{where[2]}" if "blocks" in where else ""
        leaf = "bias" if end == "bias" else "scale" if "norm" in layer else "kernel"
        flat = value.T if value.ndim == 2 else value
        if layer == "qkv":
            for name, part in zip(("query", "key", "value"), np.split(flat, 3, axis=-1), strict=True):
                found[f"{block}/{names['attn']}/{name}/{leaf}"] = part.reshape(*part.shape[:-1], HEADS, dim // HEADS)
        elif layer == "proj" and block:
            split = flat.reshape(HEADS, dim // HEADS, dim) if leaf == "kernel" else flat
            found[f"{block}/{names['attn']}/out/{leaf}"] = split
        elif layer == "proj":
            found[f"embedding/{leaf}"] = value.transpose(2, 3, 1, 0) if leaf == "kernel" else value
        elif layer in ("fc1", "fc2"):
            found[f"{block}/{names['mlp']}/Dense_{int(layer[2]) - 1}/{leaf}"] = flat
        elif layer in ("norm1", "norm2"):
            found[f"{block}/{names[layer]}/{leaf}"] = flat
        elif layer in ("norm", "head"):
            found[f"{'Transformer/encoder_norm' if layer == 'norm' else 'head'}/{leaf}"] = flat
    return found


def stacked(found):
    """Blocks in one array, as nn.scan has them."""
    names = {re.sub(r"encoderblock_\d+", "encoderblock", key) for key in found}
    pattern = "encoderblock_{}/"
    return {
        name: np.stack([found[name.replace("encoderblock/", pattern.format(index))] for index in range(PICO["depth"])])
        if "encoderblock/" in name
        else found[name]
        for name in names
    }


def training(found):
    """A checkpoint of training holds more than parameters."""
    return {f"params/{key}": value for key, value in found.items()} | {
        "opt/0/mu/cls": np.zeros(3, np.float32),
        "extra/step": np.zeros(()),
    }


def write(path, found):
    np.savez(path, **found)
    return f"big_vision:{path}"


def wanted(values):
    return timm.from_tensors(values, Hints("vit", gelu="tanh", embed_class=False), "a test", "", timm.HALF).params


def assert_equal(got, want):
    got, want = trees.flatten(got), trees.flatten(want)
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.mark.parametrize(("names", "embed_class"), [(BIG_VISION, False), (AUGREG, True)], ids=["big_vision", "augreg"])
def test_logits_are_those_of_the_transcription_with_the_tanh_gelu(rng, tmp_path, names, embed_class):
    """big_vision adds the class token after the position embedding; AugReg before."""
    values = numpy_vit.random_tensors(rng, **PICO, embed_class=embed_class)
    source = write(tmp_path / "B_16.npz", flax_names(values, names))
    found = weights.read(source)
    assert (found.model, found.num_classes) == ("vit_pico_tanh", 7)
    assert found.preprocess == Preprocess(12, 0.875, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert found.sha256 == tensors.sha256(tmp_path / "B_16.npz")
    model, params, _ = weights.load(source)
    images = rng.standard_normal((2, 12, 12, 3)).astype(np.float32)
    got = jax.jit(model.apply)({"params": params}, images)
    want = numpy_vit.logits(values, images, HEADS, gelu=numpy_vit.tanh_gelu)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        stacked,
        training,
        lambda found: training(stacked(found)),
        lambda found: {key.replace("posembed_input/", ""): value for key, value in found.items()},
    ],
    ids=["scan", "training", "scan and training", "position in the encoder"],
)
def test_other_layouts_give_the_same_parameters(rng, tmp_path, change):
    values = numpy_vit.random_tensors(rng, **PICO)
    found = weights.read(write(tmp_path / "vit.npz", change(flax_names(values, AUGREG))))
    assert_equal(found.params, wanted(values))


def test_bfloat16_is_read(rng, tmp_path):
    values = numpy_vit.random_tensors(rng, **PICO)
    rounded = {key: np.asarray(value, jnp.bfloat16) for key, value in values.items()}
    found = weights.read(write(tmp_path / "vit.npz", flax_names(rounded, BIG_VISION)))
    assert_equal(found.params, wanted(rounded))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"MAPHead_0/probe": np.zeros((1, 1, 32))}), ["attention pooling"]),
        (lambda t: t.update({"pre_logits/kernel": np.zeros((32, 32))}), ["hidden layer before the head"]),
        (lambda t: t.pop("cls"), ["class token"]),
        (lambda t: [t.pop(f"head/{end}") for end in ("kernel", "bias")], ["head.weight"]),
        (lambda t: t.pop("Transformer/encoderblock_1/MlpBlock_0/Dense_1/bias"), ["blocks_1/mlp/fc2/bias"]),
        (lambda t: t.pop("Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/bias"), ["blocks_1/attn/qkv"]),
        (lambda t: t.update({"embedding/bias": np.zeros(5)}), ["patch_embed/bias", "(5,)"]),
        (lambda t: t.update({"t/kernel": np.zeros((2, 2))}), ["t/kernel", "left over"]),
        (lambda t: t.update(cls=np.zeros((1, 1, 100))), ["blocks_0/attn/proj/bias is (100,)"]),
    ],
    ids=["map", "pre_logits", "no cls", "no head", "no bias", "no key", "shape", "left over", "another width"],
)
def test_what_can_not_be_read_is_refused_with_its_name(rng, tmp_path, change, words):
    found = flax_names(numpy_vit.random_tensors(rng, **PICO), BIG_VISION)
    change(found)
    with pytest.raises(UserError) as caught:
        weights.read(write(tmp_path / "vit.npz", found))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_attention_above_is_named_and_shaped_as_flax_does_it(rng):
    found = flax_names(numpy_vit.random_tensors(rng, **PICO), BIG_VISION)
    x = jnp.zeros((1, 5, 32))
    variables = jax.eval_shape(nn.MultiHeadDotProductAttention(num_heads=HEADS).init, jax.random.key(0), x, x)
    for path, leaf in trees.flatten(variables["params"]).items():
        assert found[f"Transformer/encoderblock_0/MultiHeadDotProductAttention_0/{path}"].shape == leaf.shape
