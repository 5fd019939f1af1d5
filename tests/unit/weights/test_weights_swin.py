"""Swin checkpoints by every name that their tensors have had, and what tells their image size. No forward pass here:
test_swin.py has that for today's names."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from lraqvit_jax import weights
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from tests.golden import recipe
from tests.unit import numpy_swin

PICO = {"dim": 16, "depths": (2, 2), "heads": (2, 4), "patch": 1, "window": 4, "side": 16, "classes": 5}


def draw(**fields):
    return recipe.weights(numpy_swin.shapes(**PICO | fields), seed=3)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path)
    return path


def read(path, values, side=16, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, side, side]}}))
    return weights.read(f"timm:{save(path, values)}", **options)


def transformers(directory, values, **config):
    save(directory / "model.safetensors", values)
    (directory / "config.json").write_text(json.dumps({"model_type": "swin", "image_size": 16, **config}))
    return f"huggingface:{directory}"


def authors(values):
    """Names of the authors' own code: merging at the end of a stage, a plain head, constants stored."""
    renamed = {
        re.sub(r"layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name): value
        for name, value in values.items()
    }
    renamed = {name.replace("head.fc.", "head."): value for name, value in renamed.items()}
    for name in [name for name in renamed if name.endswith("norm1.weight")]:
        block = name.removesuffix("norm1.weight")
        renamed[f"{block}attn.relative_position_index"] = np.zeros((16, 16), np.int64)
    return renamed | {"layers.0.blocks.1.attn_mask": np.zeros((16, 16, 16), np.float32)}


def transformers_names(values, new_style):
    """timm's names to those of transformers 4 or 5."""
    renamed = {}
    for name, value in authors(values).items():
        if name.endswith("attn_mask"):
            continue
        stem = re.sub(r"^layers\.", "swin.encoder.layers.", name)
        if ".attn.qkv." in name:
            for letter, part in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                new = f".attention.{letter[0]}_proj." if new_style else f".attention.self.{letter}."
                renamed[stem.replace(".attn.qkv.", new)] = part
            continue
        for old, new in {
            ".attn.proj.": ".attention.o_proj." if new_style else ".attention.output.dense.",
            ".attn.relative": ".attention.relative_position_bias.relative" if new_style else ".attention.self.relative",
            ".mlp.fc1.": ".mlp.fc1." if new_style else ".intermediate.dense.",
            ".mlp.fc2.": ".mlp.fc2." if new_style else ".output.dense.",
            ".norm1.": ".layernorm_before.",
            ".norm2.": ".layernorm_after.",
            "patch_embed.proj.": "swin.embeddings.patch_embeddings.projection.",
            "patch_embed.norm.": "swin.embeddings.norm.",
            "head.": "classifier.",
        }.items():
            stem = stem.replace(old, new)
        renamed["swin.layernorm" + name[4:] if name.startswith("norm.") else stem] = value
    return renamed


def assert_equal(got, want):
    got, want = trees.flatten(got), trees.flatten(want)
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


def test_older_names_give_the_same_parameters(tmp_path):
    values = draw()
    today = read(tmp_path / "swin_pico_patch1_window4_16.safetensors", values)
    old = read(tmp_path / "old" / "swin_pico_patch1_window4_16.safetensors", authors(values))
    assert_equal(old.params, today.params)
    assert (today.model, today.num_classes, today.preprocess.size) == ("swin_pico", 5, 16)
    assert (old.model, old.num_classes, old.preprocess) == (today.model, today.num_classes, today.preprocess)
    kernel = today.params["layers_1"]["downsample"]["reduction"]["kernel"]
    np.testing.assert_array_equal(kernel, values["layers.1.downsample.reduction.weight"].T)


@pytest.mark.parametrize("new_style", [False, True], ids=["4", "5"])
def test_transformers_names_give_the_same_parameters(tmp_path, new_style):
    values = draw()
    today = read(tmp_path / "swin_pico_16.safetensors", values)
    labels = {str(index): f"class {index}" for index in range(5)}
    directory, renamed = tmp_path / "saved", transformers_names(values, new_style)
    found = weights.read(transformers(directory, renamed, id2label=labels, layer_norm_eps=1e-5))
    assert_equal(found.params, today.params)
    assert (found.model, found.class_names[4]) == ("swin_pico", "class 4")
    assert weights.read(transformers(directory, renamed, hidden_act="gelu_new")).model == "swin_pico_tanh"
    for field, value, word in (("hidden_act", "relu", "relu"), ("layer_norm_eps", 1e-6, "1e-06")):
        with pytest.raises(UserError, match=word):
            weights.read(transformers(directory, renamed, **{field: value}))


def test_without_qkv_bias_it_is_zero_and_a_part_that_is_missing_is_named(tmp_path):
    values = transformers_names(draw(), True)
    plain = {name: value for name, value in values.items() if not re.search(r"[qkv]_proj\.bias", name)}
    found = weights.read(transformers(tmp_path / "plain", plain, qkv_bias=False))
    assert not found.params["layers_1"]["blocks_0"]["attn"]["qkv"]["bias"].any()
    for broken in (plain, {name: value for name, value in values.items() if "0.attention.k_proj.weight" not in name}):
        with pytest.raises(UserError, match=r"layers_0/blocks_0/attn/qkv/\w+ needs layers.0.blocks.0.attn.qkv"):
            weights.read(transformers(tmp_path / "broken", broken))


def test_the_preprocessing_that_transformers_saved_is_kept(tmp_path):
    source = transformers(tmp_path, transformers_names(draw(), True), image_size=[16, 16])
    fields = {
        "resample": 2,
        "do_center_crop": True,
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 16, "width": 16},
    }
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields | statistics))
    assert weights.read(source).preprocess == Preprocess(16, 0.8, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("name", "card", "size"),
    [
        ("swin_pico_24", {"pretrained_cfg": {"input_size": [3, 20, 20]}}, 20),
        ("swin_pico_24", {"input_size": [3, 20, 20]}, 20),  # as timm wrote it before 2023
        ("swin_tiny_patch4_window7_224.ms_in22k_ft_in1k", {}, 224),  # timm's own
        ("swin_tiny_patch4_window7_224_22kto1k", {}, 224),
    ],
)
def test_the_image_size_is_the_cards_or_that_of_a_published_model(tmp_path, name, card, size):
    path = save(tmp_path / f"{name}.safetensors", draw())
    if card:
        (tmp_path / "config.json").write_text(json.dumps(card))
    assert weights.read(f"timm:{path}").preprocess.size == size


def test_the_image_size_may_follow_from_the_window_and_is_asked_for_otherwise(tmp_path):
    for name in ("swin", "swin_pico_24", "swin_tiny_run_2024"):  # digits of a name are no size
        with pytest.raises(UserError, match="does not tell its image size"):
            weights.read(f"timm:{save(tmp_path / f'{name}.safetensors', draw())}")
    for window, size in ((7, 224), (12, 384)):
        path = save(tmp_path / "swin_2024.safetensors", draw(window=window, side=size))
        found = weights.read(f"timm:{path}")
        assert (found.model, found.preprocess.size) == (f"swin_pico_window{window}", size)
    smaller = save(tmp_path / "swin.safetensors", draw(window=7, side=12))  # A window of its last maps is smaller.
    with pytest.raises(UserError, match="does not tell its image size"):
        weights.read(f"timm:{smaller}")


def test_another_image_size_resamples_the_tables_of_maps_that_are_smaller_than_a_window(tmp_path):
    values = draw()
    path = tmp_path / "swin_pico_16.safetensors"
    found = read(path, values, image_size=6)  # maps of 6 and 3
    first, second = (found.params[f"layers_{stage}"]["blocks_0"]["attn"] for stage in (0, 1))
    name = "relative_position_bias_table"
    np.testing.assert_array_equal(first[name], values[f"layers.0.blocks.0.attn.{name}"])
    assert second[name].shape == (25, 4)
    flipped = {key: value[::-1] if key.endswith(name) else value for key, value in values.items()}
    again = read(tmp_path / "flipped" / "swin_pico_16.safetensors", flipped, image_size=6)
    np.testing.assert_allclose(again.params["layers_1"]["blocks_0"]["attn"][name], second[name][::-1], atol=1e-5)
    larger = weights.read(f"timm:{path}", image_size=32)
    assert_equal(larger.params, weights.read(f"timm:{path}").params)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("layers.1.blocks.0.attn.proj.bias"), ["layers.1.blocks.0.attn.proj.bias"]),
        (lambda t: t.pop("layers.1.downsample.reduction.weight"), ["layers.1.downsample.reduction.weight"]),
        (lambda t: t.update({"layers.1.downsample.reduction.bias": np.zeros(32)}), ["reduction.bias is left over"]),
        (lambda t: t.update({"patch_embed.norm.bias": np.zeros(5)}), ["patch_norm/bias", "(5,)"]),
        (
            lambda t: t.update({"layers.1.blocks.1.attn.relative_position_bias_table": np.zeros((25, 4))}),
            ["layers_1/blocks_1/attn/relative_position_bias_table", "(49, 4)", "(25, 4)"],
        ),
        (lambda t: [t.pop(f"head.fc.{end}") for end in ("weight", "bias")], ["head.weight"]),
        (lambda t: t.update({"layers.0.blocks.2.norm1.weight": np.zeros(16)}), ["layers.0.blocks.2.attn.proj.bias"]),
    ],
    ids=["missing", "no merging", "left over", "shape", "table", "no head", "depth"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    values = draw()
    change(values)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "swin_pico_16.safetensors", values)
    assert all(word in str(caught.value) for word in words), str(caught.value)
