"""Files of CLIP, DINOv2 and SigLIP: transformers' names against a transcription in float64, the size of their images,
and what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.weights import cards
from tests.unit import numpy_vit, small

PICO = {"dim": 32, "depth": 1, "patch": 4, "side": 2, "classes": 0}
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
TOWER = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "norm_pre.": "pre_layrnorm.",
    "norm.": "post_layernorm.",
    "blocks.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.proj.": ".self_attn.out_proj.",
    "attn_pool.proj.": "head.attention.out_proj.",
    "attn_pool.norm.": "head.layernorm.",
    "attn_pool.latent": "head.probe",
    "attn_pool.mlp.": "head.mlp.",
}
DINOV2 = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
    "blocks.": "encoder.layer.",
    ".attn.proj.": ".attention.output.dense.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def renamed(values, tower):
    """timm's names to transformers'."""
    made = {}
    pool = {
        f"attn_pool.qkv.{end}": np.concatenate([values[f"attn_pool.{part}.{end}"] for part in ("q", "kv")])
        for end in ("weight", "bias")
        if "attn_pool.latent" in values
    }
    for name, value in {**values, **pool}.items():
        if name.startswith(("attn_pool.q.", "attn_pool.kv.")):
            continue
        if name.startswith("attn_pool.qkv."):
            made[f"vision_model.head.attention.in_proj_{name.rpartition('.')[2]}"] = value
        elif name.startswith("project."):
            made["visual_projection.weight"] = value
        elif name.startswith("head."):
            made[f"classifier.{name.rpartition('.')[2]}"] = value
        else:
            made |= block_names(name, value, tower)
    return made


def block_names(name, value, tower):
    """Of one tensor, which are three where it is of query, key and value."""
    new, names = name, TOWER if tower else DINOV2
    for old, replacement in names.items():
        new = replacement + new.removeprefix(old) if new.startswith(old) else new
        new = new.replace(old, replacement) if old.startswith(".") or old.startswith("ls") else new
    if tower and name in ("cls_token", "pos_embed"):
        value = value.reshape(-1, value.shape[-1]) if name == "pos_embed" else value.reshape(-1)
    prefix = "vision_model." if tower else "dinov2."
    if ".attn.qkv." not in new:
        return {prefix + new: value}
    ends = ("self_attn.{}_proj", "qkv") if tower else ("attention.attention.{}", ("query", "key", "value"))
    parts = zip(ends[1], np.split(value, 3), strict=True)
    return {prefix + new.replace("attn.qkv", ends[0].format(letter)): part for letter, part in parts}


FAMILIES = {
    "dinov2": ({"layer_scale": True}, VISION),
    "dinov2_with_registers": (
        {"layer_scale": True, "registers": 2, "swiglu": True, "units": 88},
        VISION | {"num_register_tokens": 2, "use_swiglu_ffn": True, "mlp_ratio": 4},
    ),
    "clip_vision_model": ({"pre_norm": True, "projection": 12}, VISION | {"projection_dim": 12}),
    "siglip_vision_model": ({"class_token": False, "pool": "map"}, VISION | {"vision_use_head": True}),
}
GELUS = {"clip_vision_model": "quick", "siglip_vision_model": "tanh", "dinov2_with_registers": "swiglu"}


def folder(where, kind, changes=None, **more):
    """As `save_pretrained` leaves it; the tensors in timm's names."""
    options, config = FAMILIES[kind]
    values = numpy_vit.random_tensors(np.random.default_rng(0), **PICO | options | more)
    if kind == "dinov2_with_registers":  # Their positions are none.
        values["pos_embed"][:, 1:3] = 0
    named = renamed(values, kind not in ("dinov2", "dinov2_with_registers"))
    if kind == "dinov2_with_registers":
        name = "dinov2.embeddings.position_embeddings"
        named[name] = np.delete(named[name], [1, 2], 1)
        for end in ("weight", "bias"):
            stem = "dinov2.encoder.layer.0.mlp."
            named[f"{stem}weights_in.{end}"] = named.pop(f"{stem}fc1.{end}")
            named[f"{stem}weights_out.{end}"] = named.pop(f"{stem}fc2.{end}")
    write(where, {"model_type": kind, **config, **(changes or {})}, named)
    return values


def write(where, config, named=None):
    if named is not None:
        plain = {name: np.ascontiguousarray(value) for name, value in named.items()}
        safetensors.numpy.save_file(plain, where / "model.safetensors")
    (where / "config.json").write_text(json.dumps(config))


def of_numpy(values, images, kind, **options):
    pool = "map" if kind.startswith("siglip") else "token"
    eps = 1e-5 if kind.startswith("clip") else 1e-6
    gelu = numpy_vit.GELUS[GELUS.get(kind, "exact")]
    return numpy_vit.logits(values, images, 2, eps, gelu, options.get("pool", pool))


def error(source, want, images, **options):
    model, params, _ = weights.load(source, **options)
    return np.abs(small.apply(model, params, images) - want).max() / np.abs(want).max()


@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_names_give_the_features_of_the_transcription(rng, tmp_path, kind):
    values = folder(tmp_path, kind)
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    assert error(f"huggingface:{tmp_path}", of_numpy(values, images, kind), images) < 1e-5
    assert weights.read(f"huggingface:{tmp_path}").num_classes == 0


def test_a_dinov2_that_classifies_reads_class_token_and_mean(rng, tmp_path):
    values = folder(tmp_path, "dinov2", classes=3, pool="concat")
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    want = of_numpy(values, images, "dinov2", pool="concat")
    assert error(f"huggingface:{tmp_path}", want, images) < 1e-5


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_vision_part_of_a_whole_model_is_read(rng, tmp_path, kind, capsys):
    tower = f"{kind}_vision_model"
    values = folder(tmp_path, tower)
    named = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    more = {"text_model.encoder.x": np.ones(3, np.float32), "logit_scale": np.ones((), np.float32)}
    more["vision_model.embeddings.position_ids"] = np.arange(4)[None]
    vision = {"model_type": tower, **VISION, "projection_dim": 512}
    config = {"model_type": kind, "text_config": {}, "vision_config": vision}
    write(tmp_path, config | ({"projection_dim": 12} if kind == "clip" else {}), named | more)
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    assert error(f"huggingface:{tmp_path}", of_numpy(values, images, tower), images) < 1e-5
    assert "does not use" in capsys.readouterr().err


def test_dinov2_sees_images_of_its_processors_size(tmp_path):
    """Interpolated by Keys' cubic of a = -3/4, which PyTorch has; from the stored positions, whatever is asked for."""
    folder(tmp_path, "dinov2")
    source, native = f"huggingface:{tmp_path}", weights.read(f"huggingface:{tmp_path}")
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 20}, "crop_size": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = weights.read(source)
    assert (native.preprocess.size, found.preprocess.size, found.grid) == (8, 16, 0)
    grid = native.params["pos_embed"][0, 1:].reshape(2, 2, -1)
    # Halfway between samples, at 1/4 and 3/4 of a pixel: the weights of a = -3/4.
    near, far = _keys(0.25), _keys(0.75)
    rows = np.array([[1 + far[0], -far[0]], [near[1] + near[0], near[2] + near[3]]])
    scaled = found.params["pos_embed"][0, 1:].reshape(4, 4, -1)
    want = np.einsum("a,b,abd->d", rows[1], rows[1], grid)
    np.testing.assert_allclose(scaled[1, 1], want, atol=1e-6)
    again = weights.read(source, image_size=8)
    np.testing.assert_array_equal(again.params["pos_embed"], native.params["pos_embed"])


def _keys(t, a=-0.75):
    """Weights of the four samples round a place t behind the second (Keys 1981)."""
    x = np.array([1 + t, t, 1 - t, 2 - t])
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, far)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("siglip_vision_model", {"vision_use_head": False}, "vision_use_head = False"),
        ("siglip_vision_model", {"image_size": 16}, "image_size 16"),
        ("siglip_vision_model", {"rope_theta": 1.0}, "rope_theta = 1.0, a field that is not known"),
        ("clip_vision_model", {"projection_dim": 24}, "projection_dim 24, and the weights have 12"),
        ("clip_vision_model", {"hidden_act": "relu"}, "'relu'"),
        ("clip_vision_model", {"num_attention_heads": 5}, "5 heads"),
        ("dinov2", {"use_swiglu_ffn": True}, "not those of SwiGLU"),
        ("dinov2", {"use_swiglu_ffn": "yes"}, "use_swiglu_ffn = 'yes'"),
        ("dinov2", {"mlp_ratio": 3}, "mlp_ratio 3"),
        ("dinov2_with_registers", {"num_register_tokens": 4}, "num_register_tokens 4, and the weights have 2"),
        ("dinov2_with_registers", {"use_swiglu_ffn": False}, "not those of a plain MLP"),
    ],
)
def test_configs_that_are_not_those_of_the_tensors_are_refused(tmp_path, kind, changes, words):
    folder(tmp_path, kind, changes)
    with pytest.raises(UserError, match=words):
        weights.read(f"huggingface:{tmp_path}")


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_a_processor_of_another_size_is_refused(tmp_path, kind):
    folder(tmp_path, kind)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 16, "crop_size": 16}))
    with pytest.raises(UserError, match="makes images of 16"):
        weights.read(f"huggingface:{tmp_path}")


def test_the_mean_of_clips_tokens_before_the_last_norm_is_refused(tmp_path):
    folder(tmp_path, "clip_vision_model", classes=3, projection=0)
    with pytest.raises(UserError, match="without the last LayerNorm"):
        weights.read(f"huggingface:{tmp_path}")


def test_a_config_without_its_vision_part_is_refused(tmp_path):
    folder(tmp_path, "clip_vision_model")
    write(tmp_path, {"model_type": "clip", "vision_config": ["a"]})
    with pytest.raises(UserError, match="vision_config"):
        weights.read(f"huggingface:{tmp_path}")


@pytest.mark.parametrize(
    ("options", "name", "args", "words"),
    [
        ({"class_token": False}, "mine", {}, "no class token .*global_pool"),
        ({"swiglu": True}, "mine", {}, "not those of a plain MLP"),
        ({}, "vit_giant_patch14_dinov2", {}, "not those of SwiGLU"),
        ({}, "vit_giant_patch14_dinov2", {"act_layer": "gelu"}, "act_layer = 'gelu'; these can be read: silu"),
        ({"pre_norm": True}, "mine", {}, "epsilon of LayerNorms"),
        ({}, "vit_tiny_patch16_224", {"global_pool": "map"}, "global_pool = 'map'"),
        ({"pool": "map"}, "vit_tiny_patch16_224", {"global_pool": "token"}, "attn_pool.* left over"),
        ({}, "vit_tiny_patch16_224", {"reg_tokens": 4}, "reg_tokens 4, and the weights have 0"),
        ({}, "vit_tiny_patch16_224", {"qk_norm": True}, "qk_norm True, and the weights have False"),
        ({}, "vit_tiny_patch16_224", {"class_token": False}, "class_token False"),
        ({}, "vit_tiny_patch16_224", {"pool_include_prefix": True}, "pool_include_prefix = True"),
        ({"registers": 11, "side": 4, "embed_class": False}, "mine", {}, "16 positions for 12 tokens"),
    ],
)
def test_timms_cards_that_are_not_those_of_the_tensors_are_refused(tmp_path, options, name, args, words):
    values = numpy_vit.random_tensors(np.random.default_rng(0), **PICO | {"classes": 3} | options)
    safetensors.numpy.save_file(values, tmp_path / "model.safetensors")
    prepared = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bilinear"}
    card = {"architecture": name, "model_args": {"num_heads": 2, **args}, "pretrained_cfg": prepared}
    (tmp_path / "config.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=words):
        weights.read(f"timm:{tmp_path}")


def test_timms_table_says_what_no_tensor_tells():
    assert cards.architecture("vit_base_patch32_clip_quickgelu_224") == {"gelu": "quick", "norm_eps": 1e-5}
    assert cards.architecture("vit_base_patch16_siglip_gap_224.webli") == {"pool": "avg"}
    assert cards.architecture("vit_giant_patch14_reg4_dinov2") == {"gelu": "swiglu", "no_embed_class": True}
    assert cards.architecture("vit_tiny_patch16_224") == cards.architecture("mine") == {}
    assert cards.published("vit_small_patch14_dinov2.lvd142m")["num_classes"] == 0
