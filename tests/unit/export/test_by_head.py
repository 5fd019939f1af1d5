"""Blocks by head, pivoted pairs and narrower MLPs: on integers, and in ONNX Runtime."""

import dataclasses

import numpy as np
import pytest

from lraqvit_jax import config, models
from lraqvit_jax.calibration import observe
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.export import onnx
from lraqvit_jax.plan import check, cost, files, records
from lraqvit_jax.quant import quantize
from lraqvit_jax.weights.artifacts import Artifact
from tests.unit import small
from tests.unit.models import test_by_head as by_head


def _artifact(variant, size, params, plan):
    meta = {"name": "small", "model": variant, "num_classes": 5, "class_names": [], "plan": files.to_json(plan)}
    preprocess = Preprocess(size=size)
    model = models.create(variant, num_classes=5, image_size=size, plan=plan)
    return Artifact(model, params, preprocess, meta | {"preprocess": preprocess.to_json()})


def _float(name, rng):
    variant, _, params, spec, seen, images = by_head.subject(name, rng)
    made, plan = by_head.shrunk(spec, params, seen, by_head.smaller)
    return _artifact(variant, images.shape[1], made, plan), images


def _quantized(artifact, images, granularity, method, **fields):
    plan = {
        path: dataclasses.replace(layer, form="quantized", bits=8, granularity=granularity, **fields)
        for path, layer in artifact.plan.items()
    }
    rows = {"image": images, "label": np.zeros(len(images), np.int32), "mask": np.ones(len(images), bool)}
    layers = list(artifact.spec.layers)
    seen = observe.inputs(artifact.model, artifact.params, layers, [rows], small.MESH)
    made = quantize.quantize(artifact.params, plan, layers, seen, config.QUANTIZERS[method])
    check.check(made.plan, models.spec(artifact.meta["model"], num_classes=5, image_size=images.shape[1]).layers)
    return _artifact(artifact.meta["model"], images.shape[1], made.params, made.plan)


@pytest.mark.parametrize("name", ["vit_pico", "deit3", "swin_padded"])
def test_a_float_file_computes_the_same(name, rng, tmp_path):
    artifact, images = _float(name, rng)
    onnx.export(artifact, tmp_path / "model.onnx")
    expected = np.asarray(small.apply(artifact.model, artifact.params, images))
    got = onnx.load(tmp_path / "model.onnx")(images)
    np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "granularity", "method", "fields"),
    [
        ("vit_pico", "per_token_dynamic", "dynamic", {}),
        ("vit_pico", "per_tensor", "naive", {}),
        ("vit_pico", "per_token", "wads", {}),
        ("vit_pico", "per_token_dynamic", "dynamic", {"asymmetric": True, "group": 4}),
        ("vit_pico", "per_token_dynamic", "dynamic", {"weight_bits": 4}),
        ("deit3", "per_token_dynamic", "dynamic", {}),
        ("swin_padded", "per_token_dynamic", "dynamic", {}),
    ],
)
def test_integers_follow_the_float_model_and_the_file_follows_them(name, granularity, method, fields, rng, tmp_path):
    artifact, images = _float(name, rng)
    made = _quantized(artifact, images, granularity, method, **fields)
    exact = np.asarray(small.apply(artifact.model, artifact.params, images))
    got = np.asarray(small.apply(made.model, made.params, images))
    scale = np.abs(exact).max()
    assert 0 < np.abs(got - exact).max() < (0.5 if fields.get("weight_bits") else 0.15) * scale
    onnx.export(made, tmp_path / "model.onnx", exact=True)
    difference = np.abs(onnx.load(tmp_path / "model.onnx")(images) - got)  # A tie that falls otherwise moves one image.
    assert np.median(difference) < 1e-4 * scale
    assert difference.max() < 0.05 * scale
    kernels = sum(leaf.nbytes for info in made.spec.layers for leaf in _leaves(made.params, info.path))
    dense = models.spec(made.meta["model"], num_classes=5, image_size=images.shape[1]).layers
    assert kernels == cost.total_cost(made.plan, dense).bytes
    assert records.resolved(dense, made.plan) == list(made.spec.layers)


def _leaves(params, path):
    import jax

    from lraqvit_jax.base import trees

    return jax.tree.leaves(trees.get(params, path))
