"""Sums of integers in onnxruntime, at the ends of every grid, against NumPy in int64: for each target that this machine
can run. The patch embedding reads the images themselves, so a test chooses its codes."""

import os
import pathlib
import platform

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lraqvit_jax.base import trees
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import sharding
from lraqvit_jax.export import onnx as export
from lraqvit_jax.plan.cost import packed_rows
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from lraqvit_jax.weights import artifacts
from tests.unit import small

BATCH, RANK, M, N = 5, 8, 48, 32
STEP, UNIT = 2.0**-3, 2.0**-4
CPU = pathlib.Path("/proc/cpuinfo").read_text() if pathlib.Path("/proc/cpuinfo").exists() else ""
HIDDEN = os.environ.get("PROCESSOR") == "avx2"  # by tests.slow.processor
RUNS = {"avx2": True, "vnni": "vnni" in CPU and not HIDDEN, "arm": platform.machine() in ("aarch64", "arm64")}


def embedding(rng, layer, weights):
    """A ViT whose patch embedding alone is quantized."""
    plan = {info.path: LayerPlan() for info in small.LAYERS}
    abstract = sharding.abstract_params(small.model(plan), 8, small.MESH)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)
    params = trees.replace(params, {"patch_embed": weights})
    plan["patch_embed"] = layer
    meta = {"name": "one", "model": "vit_pico", "num_classes": 10, "class_names": None}
    meta |= {"plan": to_json(plan), "preprocess": Preprocess(8).to_json()}
    return artifacts.Artifact(artifacts.build(meta), params, Preprocess(8), meta)


def outputs(one, codes, path, target):
    """What the patch embedding gives for patches of these codes times STEP, (rows, n)."""
    made = with_embedding(export.export(one, path, target))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["patch_embed:output"], {"images": patches(codes)})[0]


def with_embedding(made):
    made.graph.output.append(helper.make_tensor_value_info("patch_embed:output", TensorProto.FLOAT, None))
    return made


def patches(codes):
    """Images of these codes."""
    order = codes.reshape(BATCH, 2, 2, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(BATCH, 8, 8, 3)
    return (order * STEP).astype(np.float32)


def drawn(rng, rows, columns, limit, low=None):
    """Mostly the two ends of a grid, and whole columns of them, where sums are largest."""
    low = -limit if low is None else low
    values = rng.choice([low, limit, 0, 1], (rows, columns), p=[0.4, 0.4, 0.1, 0.1])
    values[:, 0], values[:, 1] = limit, low
    return values


def case(rng, bits, weight_bits, granularity, rank):
    """A layer of random codes at the ends of the grids, its weights, and the codes of its input."""
    layer = LayerPlan("quantized", rank, bits, granularity, weight_bits=weight_bits)
    shapes = {"u": (M, RANK), "v": (RANK, N)} if rank else {"kernel": (M, N)}
    limit, weights = qarray.qmax(weight_bits), {"bias": np.zeros(N, np.float32)}
    kernels = {name: drawn(rng, *shape, limit) for name, shape in shapes.items()}
    for name, kernel in kernels.items():
        stored = np.asarray(qarray.pack(kernel.astype(np.int8), weight_bits))
        weights[name] = {"qvalue": stored, "scale": np.full(kernel.shape[1], UNIT, np.float32)}
        if granularity == "per_tensor":
            weights[f"{'z' if name == 'v' else 'x'}_scale"] = np.float32(STEP)
    static = granularity == "per_tensor" and bits == 8  # Only then a code may be -128, which is 0 as uint8.
    codes = drawn(rng, M, BATCH * 4, qarray.qmax(bits), -qarray.qmax(bits) - static).T
    codes[0] = codes.max()
    return layer, weights, kernels, codes


@pytest.mark.parametrize("target", [name for name, runs in RUNS.items() if runs])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_token_dynamic"])
@pytest.mark.parametrize(("bits", "weight_bits"), [(8, 8), (8, 7), (7, 8), (8, 6), (8, 5), (8, 4), (8, 3), (6, 8)])
def test_sums_are_exact(rng, tmp_path, bits, weight_bits, granularity, target):
    layer, weights, kernels, codes = case(rng, bits, weight_bits, granularity, 0)
    got = outputs(embedding(rng, layer, weights), codes, tmp_path / "one.onnx", target)
    sums = codes.astype(np.int64) @ kernels["kernel"]
    assert np.abs(sums).max() >= M * qarray.qmax(bits) * qarray.qmax(weight_bits)
    np.testing.assert_array_equal(np.rint(got / (STEP * UNIT)), sums)


@pytest.mark.parametrize(("weight_bits", "opset"), [(3, 0), (5, 0), (6, 0), (5, 17), (4, 17)])
def test_a_kernel_takes_its_bits_and_is_taken_apart_once(rng, tmp_path, weight_bits, opset):
    """In the file there are as many bytes as are counted; the session that has read it holds int8."""
    layer, weights, kernels, _ = case(rng, 8, weight_bits, "per_token_dynamic", 0)
    made = export.export(embedding(rng, layer, weights), tmp_path / "one.onnx", "avx2", opset=opset)
    (packed,) = (one for one in made.graph.initializer if one.name == "patch_embed/kernel_packed")
    assert (packed.data_type, list(packed.dims)) == (TensorProto.UINT8, [packed_rows(M, weight_bits), N])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(tmp_path / "one.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "loaded.onnx").graph
    assert not {"Mod", "Split", "Concat"} & {node.op_type for node in graph.node if "patch_embed" in node.name}
    held = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.data_type == TensorProto.INT8]
    assert any(one.shape == (M, N) and np.array_equal(one, kernels["kernel"]) for one in held)


@pytest.mark.parametrize("weight_bits", [3, 5, 6])
def test_taking_it_apart_needs_a_dozen_bytes_an_integer(rng, tmp_path, weight_bits):
    """A runtime may keep all that it computes of constants until the file is loaded: on a device that is what has to
    fit."""
    layer, weights, _, _ = case(rng, 8, weight_bits, "per_token_dynamic", 0)
    made = onnx.shape_inference.infer_shapes(export.export(embedding(rng, layer, weights), tmp_path / "one.onnx"))
    constant, computed = {one.name for one in made.graph.initializer}, 0
    kinds = {one.name: one.type.tensor_type for one in made.graph.value_info}
    for node in made.graph.node:
        if node.op_type != "Constant" and set(node.input) <= constant:
            constant.update(node.output)
            for kind in (kinds[name] for name in node.output):
                size = np.prod([dimension.dim_value for dimension in kind.shape.dim])
                computed += size * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    assert M * N <= computed <= 12 * M * N


@pytest.mark.parametrize("weight_bits", [3, 5, 6])
def test_openvino_takes_it_apart_alike(rng, tmp_path, weight_bits):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    layer, weights, _, codes = case(rng, 8, weight_bits, "per_token_dynamic", 0)
    got = outputs(embedding(rng, layer, weights), codes, tmp_path / "one.onnx", "avx2")
    onnx.save(with_embedding(onnx.load(tmp_path / "one.onnx")), tmp_path / "two.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "two.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([patches(codes)])["patch_embed:output"]
    np.testing.assert_allclose(found, got, atol=1e-5 * np.abs(got).max())


@pytest.mark.parametrize("weight_bits", [8, 7])
def test_so_are_those_of_both_factors(rng, tmp_path, weight_bits):
    """What the first puts out is rounded, ties to even, and saturates at the ends of uint8."""
    layer, weights, kernels, codes = case(rng, 8, weight_bits, "per_tensor", RANK)
    got = outputs(embedding(rng, layer, weights), codes, tmp_path / "one.onnx", "avx2")
    first = codes.astype(np.int64) @ kernels["u"]
    between = np.clip(np.rint(first * UNIT), -128, 127).astype(np.int64)
    assert {-128, 127} <= set(between.ravel())
    np.testing.assert_array_equal(got / (STEP * UNIT), between @ kernels["v"])


@pytest.mark.skipif(RUNS["vnni"] or RUNS["arm"], reason="this processor adds products of 8 bits exactly")
def test_another_target_is_wrong_here(rng, tmp_path):
    """The reason for the targets: where there is no VNNI, sums of its file saturate."""
    layer, weights, kernels, codes = case(rng, 8, 8, "per_tensor", 0)
    got = outputs(embedding(rng, layer, weights), codes, tmp_path / "one.onnx", "vnni")
    sums = codes.astype(np.int64) @ kernels["kernel"]
    assert np.abs(np.rint(got / (STEP * UNIT)) - sums).max() > 0.1 * np.abs(sums).max()


def test_seven_bits_stay_int8_for_every_target(rng, tmp_path):
    """The narrow kernel is what all of them multiply at full speed; 8 bits are uint8 for AVX2."""
    for weight_bits, target, kind in (
        (7, "avx2", "INT8"),
        (8, "avx2", "UINT8"),
        (8, "vnni", "INT8"),
        (8, "arm", "INT8"),
    ):
        layer, weights, *_ = case(rng, 8, weight_bits, "per_tensor", 0)
        made = export.export(embedding(rng, layer, weights), tmp_path / "one.onnx", target)
        (kernel,) = (one for one in made.graph.initializer if one.name == "patch_embed/kernel")
        assert kernel.data_type == getattr(onnx.TensorProto, kind)
