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
from lraqvit_jax.plan.cost import total_cost
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
        ("runtimes", ("onnxruntime?target=neon",), "no ONNX target 'neon'"),
        ("runtimes", ("litert?variant=int4",), "no LiteRT variant 'int4'"),
        ("skip", ("jax random:sparse",), "'jax random:sparse', which none of the runtimes and models meets"),
        ("skip", ("*",), "leaves nothing to time"),
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
    assert {"onnxruntime", "openvino", "nncf", "torch", "jax", "litert"} <= set(names)
    for name in names:
        module = runtimes.module(name)
        assert all(f"\n{package}>=" in needed for package in runtimes.packages(name))
        assert module.SUFFIX in ("onnx", "nncf.xml", "stablehlo", "safetensors", "tflite")
        assert runtimes.imported(name).isidentifier()
    assert runtimes.split("openvino?A=1&B=f32") == ("openvino", {"A": "1", "B": "f32"})


def test_random_models_have_the_form_they_name_and_signals_that_live(tmp_path):
    """Their int8 logits are near the float ones: nothing saturates, nothing is zero."""
    ws = opening.open_workspace(parse(digits.get_config().to_dict()), tmp_path, write=False)
    ws = dataclasses.replace(ws, plan=planning.quantized(ws.config, ws.spec, ws.plan))
    images = np.random.default_rng(2).standard_normal((3, 8, 8, 3), np.float32)
    logits = {}
    for name in ("dense", "low_rank", "int8_low_rank", "int8_low_rank_7", "int8_low_rank_dynamic"):
        shape, granularity, _ = _random.form(f"random:{name}")
        pairs = shape != "dense"
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
    rows = [
        {"runtime": a, "reference": a, "model": m, "wall_ms": list(t), "cpu_ms": list(t), "dense": False}
        for (a, m), t in times.items()
    ]
    first, small, other = latency.compare(rows, "dense", "a")
    assert first["wall"]["in_runtime"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert small["cpu"]["in_runtime"] == small["cpu"]["in_first"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert other["wall"]["in_first"]["median"] == 0.5
    assert other["wall"]["in_runtime"] is other["wall"]["in_best"] is None


def test_the_best_dense_integers_of_any_runtime_are_a_reference():
    """Which they are, the clock on the wall says; a float model and a low-rank one, faster or not, are not them."""
    models = {("a", "dense"): (9, True, False), ("a", "int8"): (4, True, True), ("b", "int8"): (3, True, True)}
    models |= {("b", "pairs"): (1.5, False, True), ("b", "half"): (1, True, False)}
    rows = [
        {
            "runtime": a,
            "reference": "a",
            "model": m,
            "wall_ms": [ms] * 3,
            "cpu_ms": [ms] * 3,
            "dense": d,
            "integers": i,
        }
        for (a, m), (ms, d, i) in models.items()
    ]
    assert latency.best(rows)["runtime"] == "b"
    assert [row["wall"]["in_best"]["median"] for row in latency.compare(rows, "dense", "a")] == [1 / 3, 0.75, 1, 2, 3]
    assert latency.best(rows[:1]) is None


def test_dense_float_of_the_runtime_that_does_the_work_is_the_other():
    """NNCF's file runs in OpenVINO, and what LiteRT's converter makes of a float model may be integers."""
    names = ("litert?variant=dynamic", "litert", "nncf", "openvino?INFERENCE_PRECISION_HINT=f32", "openvino?target=qdq")
    keys = [(name, model) for name in names for model in ("dense", "int8")]
    assert latency.references(keys, "dense") == {"litert": "litert", "openvino": names[3]}
    assert [runtimes.suffix(name) for name in names] == ["dynamic.tflite", "tflite", "nncf.xml", "onnx", "qdq.onnx"]
    assert [runtimes.options(name) for name in names[2:]] == [{}, {"INFERENCE_PRECISION_HINT": "f32"}, {}]
    assert runtimes.packages("nncf") == ["openvino", "nncf"]


def test_a_page_has_a_row_for_each_file_and_a_column_for_each_setting():
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    faster = {"ms": spread, "in_runtime": spread, "in_best": None}
    row = {"runtime": "jax", "model": "random:dense", "file_mb": 5.0, "dense": True, "integers": False, "wall": faster}
    rows = [{**row, "threads": 1, "batch": batch, "wall_ms": [2.0]} for batch in (1, 8)]
    machine = {"processor": "one", "cores": 2, "vectors": ["avx2", "amx_int8"]}
    result = {"model": "vit_tiny", "machine": machine, "versions": {"jax": "0.1"}, "rows": rows}
    text = latency.markdown(result | {"reference": {"model": "random:dense", "runtime": "jax"}})
    assert text.startswith("vit_tiny. one, 2 cores (avx2 amx_int8). jax 0.1. Medians of 1 rounds")
    assert "| model | runtime | MB | 1 thread, batch 1 | 1 thread, batch 8 |\n|---|---|---|---|---|\n" in text
    cell = "2.0 [1.0-3.0]; 2.00 [1.00-3.00]; -"
    assert text.endswith(f"\n| dense | jax | 5.0 | {cell} | {cell} |\n")


def test_shapes_of_random_models_have_their_parameters(tmp_path):
    """Identity blocks take r^2 of each pair; narrower heads and MLPs have as many as the pairs, or a little less."""
    config = digits.get_config()
    ws = opening.open_workspace(parse(config.to_dict()), tmp_path, write=False)
    plans = {shape: _random.plan_of(ws, f"random:{shape}") for shape in _random.SHAPES}
    count = {shape: total_cost(plan, ws.spec.layers).params for shape, plan in plans.items()}
    pairs = [layer for layer in plans["low_rank"].values() if layer.rank]
    assert count["dense"] > count["low_rank"] == count["pivoted"] + sum(layer.rank**2 for layer in pairs)
    assert 0.9 * count["low_rank"] < count["products"] <= count["low_rank"]
    products = plans["products"].values()
    assert {layer.basis for layer in products} == {"", "input"} and not any(layer.rank for layer in products)
    for name in ("pivoted", "products", "int8_products"):
        one = _random.artifact(ws, f"random:{name}")
        images = np.random.default_rng(2).standard_normal((3, 8, 8, 3), np.float32)
        assert np.asarray(jax.jit(one.model.apply)({"params": one.params}, images)).std() > 0.1
