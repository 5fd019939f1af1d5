"""What `bench latency` refuses, and what its numbers and its models with random weights are."""

import dataclasses
import json
import pathlib
import pkgutil

import jax
import numpy as np
import pytest

from configs import digits
from lraqvit_jax import runtimes
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.bench import _random, latency
from lraqvit_jax.config import parse
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.run import opening, planning


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("models", ("random:int4",), "'random:int4', which is not a form"),
        ("models", ("random:dense_7",), "'random:dense_7', which is not a form"),
        ("models", ("random:dense@plan.json",), "a dense form has no plan"),
        ("models", ("random:low_rank@nowhere.json",), "nowhere.json"),
        ("models", ("dense",), "There is no whole artefact"),
        ("models", (), "latency.models is ()"),
        ("runtimes", ("tflite",), "no runtime 'tflite'"),
        ("threads", (0,), "latency.threads is 0"),
        ("threads", (10_000,), "this process has"),
        ("batches", (), "latency.batches is ()"),
        ("rounds", 0, "latency.rounds is 0"),
    ],
)
def test_bad_fields_are_named(tmp_path, field, value, says):
    config = digits.get_config().to_dict()
    config["latency"] = {**config["latency"], field: value}
    with pytest.raises(UserError, match=says.replace("(", "[(]").replace(")", "[)]")):
        latency.run(parse(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_runtime_says_what_it_needs_where_it_is_not_installed():
    root = pathlib.Path(__file__).parents[3]
    needed = "".join((root / name).read_text() for name in ("requirements.txt", "requirements-latency.txt"))
    names = [one.name for one in pkgutil.iter_modules(runtimes.__path__) if not one.name.startswith("_")]
    assert {"onnxruntime", "openvino", "torch", "jax", "litert"} <= set(names)
    for name in names:
        module = runtimes.module(name)
        assert f"\n{module.PACKAGE}>=" in needed
        assert module.SUFFIX in ("onnx", "stablehlo", "safetensors", "tflite")
        assert runtimes.imported(name).isidentifier()
    assert runtimes.split("openvino?A=1&B=f32") == ("openvino", {"A": "1", "B": "f32"})


def test_random_models_have_the_form_they_name_and_signals_that_live(tmp_path):
    """Their int8 logits are near the float ones: nothing saturates, nothing is zero."""
    ws = opening.open_workspace(parse(digits.get_config().to_dict()), tmp_path, write=False)
    ws = dataclasses.replace(ws, plan=planning.quantized(ws.config, ws.spec, ws.plan))
    images = np.random.default_rng(2).standard_normal((3, 8, 8, 3), np.float32)
    logits = {}
    for name in ("dense", "low_rank", "int8_low_rank", "int8_low_rank_7", "int8_low_rank_dynamic"):
        pairs, granularity, _ = _random.form(f"random:{name}")
        one = _random.artifact(ws, f"random:{name}")
        if pairs:
            logits[name] = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))
        encoder = {path: layer for path, layer in one.plan.items() if "blocks" in path}
        assert any(layer.rank for layer in encoder.values()) == pairs
        assert {layer.granularity for layer in encoder.values() if layer.bits} == ({granularity} - {""})
    want = logits["low_rank"]
    assert want.std() > 0.1
    for name in ("int8_low_rank", "int8_low_rank_7", "int8_low_rank_dynamic"):
        assert 0 < np.linalg.norm(logits[name] - want) < 0.2 * np.linalg.norm(want)


@pytest.mark.parametrize("form", ["low_rank", "int8_low_rank_7", "int8_low_rank_dynamic"])
def test_a_random_model_may_be_that_of_another_plan(tmp_path, form):
    """Heads, widths and identity blocks as they would be deployed, from plan.json."""
    ws = opening.open_workspace(parse(digits.get_config().to_dict()), tmp_path, write=False)
    block = blocks.blocks(ws.spec.layers)[0]
    whole = blocks.full(block)
    sizes = blocks.Sizes(whole.score // 2, whole.value // 2, whole.width // 2, 8, 8)
    plan = blocks.plan_of(ws.spec.layers, {block.path: sizes})
    (tmp_path / "plan.json").write_text(json.dumps(to_json(plan)))
    one = _random.artifact(ws, f"random:{form}@{tmp_path / 'plan.json'}")
    assert {path: (x.rank, x.width, x.basis) for path, x in one.plan.items()} == {
        path: (x.rank, x.width, x.basis) for path, x in plan.items()
    }
    images = np.random.default_rng(2).standard_normal((3, 8, 8, 3), np.float32)
    exact = _random.artifact(ws, f"random:low_rank@{tmp_path / 'plan.json'}")
    logits, float_logits = (np.asarray(jax.jit(m.model.apply)({"params": m.params}, images)) for m in (one, exact))
    assert float_logits.std() > 0.1
    assert np.linalg.norm(logits - float_logits) < 0.2 * np.linalg.norm(float_logits)


def test_ratios_are_those_of_each_round():
    """Load that doubles every time in a round leaves the ratios alone."""
    load = np.array([1.0, 2.0, 1.0, 8.0])
    times = {("a", "dense"): 6 * load, ("a", "small"): 3 * load, ("b", "small"): 12 * load}
    rows = [{"runtime": a, "model": m, "wall_ms": list(t), "cpu_ms": list(t)} for (a, m), t in times.items()]
    first, small, other = latency.compare(rows, "dense", "a")
    assert first["wall"]["in_runtime"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert small["cpu"]["in_runtime"] == small["cpu"]["in_first"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert other["wall"]["in_first"]["median"] == 0.5
    assert other["wall"]["in_runtime"] is None
