"""The comparison by layers finds a layer that was tampered with, and nothing where all is well."""

import dataclasses

import jax
import numpy as np
import pytest
from onnx import numpy_helper

from lraqvit_jax.base import arguments
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import sharding
from lraqvit_jax.export import compare
from lraqvit_jax.export import onnx as export
from lraqvit_jax.models import vit
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.weights import artifacts
from tests.unit import small
from tests.unit.export import rounding
from tests.unit.export.test_onnx import artifact

PATH = "blocks_1/mlp/fc1"
PLAN = small.quantized_plan(small.RANK, "per_token_dynamic")


def spoil(made, name):
    """Turns the sign of the largest entry of a constant."""
    tensor = next(one for one in made.graph.initializer if one.name == name)
    values = numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(np.argmax(np.abs(values.astype(float))), values.shape)
    values[place] = 256 - int(values[place]) if values.dtype == np.uint8 else -values[place]
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def integers(rng):
    """A ViT of random integers, its scales dynamic; and images."""
    plan = {path: dataclasses.replace(layer, weight_bits=7) for path, layer in PLAN.items()}
    abstract = sharding.abstract_params(small.model(plan), 8, small.MESH)

    def fill(leaf):
        if leaf.dtype == np.int8:
            return rng.integers(-63, 64, leaf.shape).astype(np.int8)
        return np.abs(rng.normal(0, 0.1, leaf.shape)).astype(np.float32)

    meta = {"name": "one", "model": "vit_pico", "num_classes": 10, "class_names": None}
    meta |= {"plan": to_json(plan), "preprocess": Preprocess(8).to_json()}
    params = jax.tree.map(fill, abstract)
    return artifacts.Artifact(artifacts.build(meta), params, Preprocess(8), meta), small.images(rng)


@pytest.mark.parametrize("quantized", [False, True])
def test_it_finds_the_layer_of_one_wrong_weight(rng, tmp_path, quantized):
    one, images = integers(rng) if quantized else artifact(rng, "vit_pico", 8, 8)
    made, noise = export.export(one, tmp_path / "one.onnx"), compare.NOISE[quantized]
    rows = compare.compare(one, images, made)
    assert [row.path for row in rows] == [info.path for info in one.spec.layers]
    assert max(row.alone for row in rows) < noise
    spoil(made, f"{PATH}/u")
    spoiled = compare.compare(one, images, made)
    assert compare.worst(spoiled).path == PATH
    assert f"They part in {PATH}: " in compare.table(spoiled, noise)
    before = [row.path for row in rows].index(PATH)
    assert [row.largest for row in spoiled[:before]] == [row.largest for row in rows[:before]]


@pytest.mark.parametrize(("model", "size"), [("swin_pico", 10), ("vit_pico", 8)])
def test_rows_are_matched_where_a_file_has_them_otherwise(rng, tmp_path, monkeypatch, model, size):
    """Windows that do not tile the map; a ViT that scales outputs behind its layers, as DeiT-III does."""
    monkeypatch.setitem(vit.VARIANTS, "vit_pico", {**vit.VARIANTS["vit_pico"], "layer_scale": True})
    one, images = artifact(rng, model, size)
    rows = compare.compare(one, images, export.export(one, tmp_path / "one.onnx"))
    noise = rounding.ROUNDINGS * rounding.EPS
    assert max(max(row.alone, row.largest) for row in rows) < noise
    assert f"within {noise:g}." in compare.table(rows, noise)


def test_a_file_of_something_else_is_named(rng, tmp_path):
    one, images = artifact(rng, "vit_pico", 8)
    made = export.export(one, tmp_path / "one.onnx")
    del made.graph.node[10:]
    with pytest.raises(UserError, match="export one again"):
        compare.compare(one, images, made)


def test_the_command_takes_an_artefact_and_its_file(rng, tmp_path, monkeypatch, capsys):
    one, _ = artifact(rng, "vit_pico", 8)
    data = {"train": "embedded:digits", "calibration": "", "data_dir": ""}
    artifacts.save_artifact(tmp_path / "one", one.params, {**one.meta, "config": {"data": data}})
    made = export.export(one, tmp_path / "one.onnx")
    spoil(made, f"{PATH}/kernel")
    (tmp_path / "spoiled.onnx").write_bytes(made.SerializeToString())
    for words, says in (
        (["--count=3"], "within 0.0001."),
        ([f"--onnx={tmp_path / 'one.onnx'}"], "within 0.0001."),
        ([f"--onnx={tmp_path / 'spoiled.onnx'}"], f"They part in {PATH}: "),
    ):
        monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "one"), *words])
        arguments.run(compare.command)
        assert says in capsys.readouterr().out
    for words, says in (
        (["--count=0"], "--count is 0"),
        (["--onnx=none.onnx"], "none.onnx cannot be read as ONNX"),
        (["--images=folders:x"], "'folders:x'"),
    ):
        monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "one"), *words])
        with pytest.raises(SystemExit, match="2"):
            arguments.run(compare.command)
        assert says in capsys.readouterr().err
