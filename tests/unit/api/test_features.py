"""Models without classes: read, compressed, exported and loaded again; and what needs classes is refused in one
sentence."""

import json

import jax
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy

import lraqvit_jax
from lraqvit_jax import config, weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.sources import memory
from lraqvit_jax.export import safetensors as tensors
from lraqvit_jax.export import stablehlo
from lraqvit_jax.run import opening
from tests.unit import numpy_vit, small

SHAPE = {"dim": 32, "depth": 1, "patch": 4, "side": 2, "classes": 0}
OPTIONS = {"fields": {"plan.multiple": 2, "cache_dir": "none", "plan.rounds": 1}, "mesh": small.MESH, "budget": 0.7}
MODELS = {
    "vit_base_patch16_siglip_224": {"class_token": False, "pool": "map"},
    "vit_giant_patch14_reg4_dinov2": {
        **{"registers": 2, "embed_class": False, "layer_scale": True, "swiglu": True, "units": 40}
    },
}
"""By timm's name, what `numpy_vit.random_tensors` makes otherwise: no class token and attention pooling; registers,
layer scale and SwiGLU."""
PREPARED = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bilinear"}


def save(folder, name, **fields):
    """A folder as timm's Hub has it."""
    values = numpy_vit.random_tensors(np.random.default_rng(0), **SHAPE | MODELS[name] | fields)
    safetensors.numpy.save_file(values, folder / "model.safetensors")
    card = {"architecture": name, "num_classes": fields.get("classes", 0), "model_args": {"num_heads": 2}}
    (folder / "config.json").write_text(json.dumps(card | {"pretrained_cfg": PREPARED}))
    return f"timm:{folder}", values


@pytest.fixture(scope="module")
def photos():
    return list(np.random.default_rng(1).integers(0, 256, (24, 10, 9, 3), np.uint8))


@pytest.fixture(scope="module", params=MODELS)
def made(request, photos, tmp_path_factory):
    """Dense features of the photos, the compressed model, and the folder of both."""
    folder = tmp_path_factory.mktemp("features")
    source, values = save(folder, request.param)
    model, params, preprocess = weights.load(source)
    images = np.stack([preprocess(memory.decoded(one)) for one in photos])
    gelu = numpy_vit.GELUS[model.gelu]
    want = numpy_vit.logits(values, images, 2, gelu=gelu, pool=model.pool)
    np.testing.assert_allclose(small.apply(model, params, images), want, atol=1e-5 * np.abs(want).max())
    steps = 2 if model.pool == "token" else 0
    found = lraqvit_jax.compress(
        model, params, photos, preprocess=preprocess, steps=steps, workdir=folder / "work", **OPTIONS
    )
    return images, want, found, folder


def test_features_are_those_of_the_dense_model_nearly(made, photos):
    _, want, model, _ = made
    got = model.logits(photos)
    cosines = np.sum(got * want, -1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(want, axis=-1)
    assert cosines.min() > 0.95
    assert {layer.bits for layer in model.plan.values()} == {8}
    assert any(layer.width or layer.rank for layer in model.plan.values())
    assert "features" in repr(model)


def test_files_and_what_is_loaded_again_give_them_too(made, photos, tmp_path):
    images, _, model, _ = made
    want = model.logits(photos)
    session = onnxruntime.InferenceSession(str(model.export_onnx(tmp_path / "one.onnx")))
    assert session.get_outputs()[0].name == "features"
    error = np.abs(session.run(None, {"images": images})[0] - want).max(-1) / np.abs(want).max()
    assert np.median(error) < 1e-5
    stablehlo.export(model.model, model.params, 8, ("cpu",), tmp_path / "one.stablehlo")
    np.testing.assert_allclose(stablehlo.load(tmp_path / "one.stablehlo")(images), want, atol=1e-5 * np.abs(want).max())
    again = lraqvit_jax.load(model.save(tmp_path / "saved"))
    np.testing.assert_array_equal(again.logits(photos), want)


def test_what_needs_classes_is_refused(made, photos):
    _, _, model, _ = made
    with pytest.raises(UserError, match="gives features and has no classes to predict"):
        model.predict(photos)
    with pytest.raises(UserError, match="gives features and has no classes to evaluate by"):
        model.evaluate(photos, [0] * len(photos))


def test_a_float_model_goes_to_timms_names_and_back(made, photos, tmp_path):
    images, _, _, folder = made
    floating = lraqvit_jax.load(folder / "work", "low_rank")
    tensors.save(floating, tmp_path / "expanded.safetensors", "expanded")
    back, values, _ = weights.load(f"timm:{tmp_path}/expanded.safetensors")
    assert back == weights.load(f"timm:{folder}")[0]
    want = floating.logits(photos)
    np.testing.assert_allclose(small.apply(back, values, images), want, atol=1e-5 * np.abs(want).max())


def test_distillation_towards_classes_is_refused(tmp_path, photos):
    model, params, preprocess = weights.load(save(tmp_path, "vit_base_patch16_siglip_224")[0])
    fields = {"fields": {"cache_dir": "none", "runs.low_rank.gamma": 1.0}, "mesh": small.MESH}
    with pytest.raises(UserError, match="low_rank is trained towards classes"):
        lraqvit_jax.compress(model, params, photos, preprocess=preprocess, steps=2, **fields)


def test_a_work_directory_wants_classes_and_a_new_head_gives_them(tmp_path):
    source, _ = save(tmp_path, "vit_base_patch16_siglip_224")
    fields = config.default()
    fields.batch_size = fields.eval_batch_size = 8
    fields.weights, fields.data.train, fields.data.eval = source, "embedded:digits", "embedded:digits"
    with pytest.raises(UserError, match="gives features and has no classes to evaluate; set num_classes"):
        opening.open_workspace(config.parse(fields.to_dict()), tmp_path / "work", write=False)
    found = weights.read(source, num_classes=3)
    assert found.params["head"]["kernel"].shape == (32, 3)
    assert not found.params["head"]["kernel"].any()
    assert jax.tree.structure(weights.read(source).params) != jax.tree.structure(found.params)
