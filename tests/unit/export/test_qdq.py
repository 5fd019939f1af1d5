"""ONNX files of target qdq: what they compute, in ONNX Runtime and OpenVINO; which kernels; what is refused of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.export import compare
from lraqvit_jax.export import onnx as export
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import qarray
from tests.unit.export import rounding, test_by_head
from tests.unit.export.test_onnx import artifact, errors, run
from tests.unit.export.test_onnx_sums import BATCH, CPU, STEP, UNIT, case, embedding

STATIC = {"granularity": "per_tensor"}
EXACT = "vnni" in CPU
"""Whether ONNX Runtime adds products of uint8 and int8 exactly here; else 7 bits are."""
WEIGHT_BITS = 8 if EXACT else 7
KERNELS = (onnx.TensorProto.INT8, onnx.TensorProto.INT4)


@pytest.mark.parametrize(
    ("model", "rank", "fields", "method"),
    [
        ("vit_pico_depth1", 8, {}, {"method": "smoothquant", "strength": 0.8}),
        ("vit_pico_reg1_map_swiglu_depth1", 0, {"asymmetric": True}, {}),
        pytest.param("swin_pico", 0, {"weight_bits": 4}, {}, marks=pytest.mark.slow),
    ],
)
def test_integers_are_those_of_jax(rng, tmp_path, model, rank, fields, method):
    fields = {"weight_bits": WEIGHT_BITS, **STATIC, **fields}
    one, images = artifact(
        rng, model, 8, rank, {key: value for key, value in fields.items() if key != "bits"}, **method
    )
    assert rounding.same_integers(errors(one, images, tmp_path / "one.onnx", target="qdq", exact=True))


@pytest.mark.parametrize("method", ["naive", "static"])
def test_pivoted_pairs_and_heads_are_those_of_jax(method, rng, tmp_path):
    """What is copied stays in float; a kernel of heads that copy inputs has zeros for these."""
    one, images = test_by_head._float("vit_pico", rng)
    one = test_by_head._quantized(one, images, "per_tensor", method, weight_bits=WEIGHT_BITS)
    assert {"input", "leading"} <= {layer.basis for layer in one.plan.values()}
    assert {layer.smoothed_z for layer in one.plan.values() if layer.copies_between} == {method == "static"}
    assert rounding.same_integers(errors(one, images, tmp_path / "one.onnx", target="qdq", exact=True))


@pytest.mark.parametrize(
    ("model", "opset"),
    [
        ("vit_pico_tanh", 17),
        ("deit_tiny_distilled_patch8_dim24_depth2_first", 18),
        ("swin_pico", 17),
        ("vit_pico", 23),
    ],
)
def test_float_files_of_every_opset(rng, tmp_path, model, opset):
    """Attention, Gelu and means are spelled out where an opset lacks them."""
    one, images = artifact(rng, model, 16)
    made = export.export(one, tmp_path / "one.onnx", "qdq" if opset < 23 else "avx2", opset=opset)
    right = rounding.exact(one, images)
    assert rounding.roundings(run(tmp_path / "one.onnx", images), right) < rounding.ROUNDINGS
    kinds = {node.op_type for node in made.graph.node}
    assert ("Attention" in kinds, "Gelu" in kinds) == (opset >= 23, opset >= 20)
    assert (made.opset_import[0].version, made.ir_version) == (opset, {17: 8, 18: 8, 23: 11}[opset])


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("avx2", {"granularity": "per_token_dynamic"}),
        ("avx2", {"granularity": "per_token_dynamic", "asymmetric": True}),
        ("qdq", STATIC),
    ],
)
def test_integers_in_the_oldest_opset(rng, tmp_path, target, fields):
    """The largest value of a row has its axis as an attribute there, and a Split only as many outputs as it names."""
    one, images = artifact(rng, "vit_pico_depth1", 8, 0, fields | {"weight_bits": WEIGHT_BITS})
    logits = []
    for opset in (17, 22):
        export.export(one, tmp_path / "one.onnx", target, opset=opset)
        logits.append(run(tmp_path / "one.onnx", images))
    assert np.abs(logits[0] - logits[1]).max() < rounding.FLIPPED * np.abs(logits[1]).max()


@pytest.mark.parametrize("weight_bits", [8, 7])
def test_sums_are_exact(rng, tmp_path, weight_bits):
    """At the ends of every grid, against NumPy in int64, behind the saturation of int8."""
    if weight_bits == 8 and not EXACT:
        pytest.skip("this processor adds products of 8 bits in 16; see the target avx2")
    layer, weights, kernels, codes = case(rng, 8, weight_bits, "per_tensor", 0)
    made = export.export(embedding(rng, layer, weights), tmp_path / "one.onnx", "qdq")
    made.graph.output.append(onnx.helper.make_tensor_value_info("patch_embed:output", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    patches = codes.reshape(BATCH, 2, 2, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(BATCH, 8, 8, 3)
    (got,) = session.run(["patch_embed:output"], {"images": (patches * STEP).astype(np.float32)})
    sums = codes.astype(np.int64) @ kernels["kernel"]
    np.testing.assert_array_equal(np.rint(got.reshape(sums.shape) / (STEP * UNIT)), sums)


def kinds_of(path, tmp_path):
    """Operators of the graph as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


@pytest.mark.parametrize("rank", [0, 8])
def test_every_product_is_of_integers_in_onnxruntime(rng, tmp_path, rank):
    """Two in each block, of attention, are not. The file has nothing that other runtimes do not know."""
    one, _ = artifact(rng, "vit_pico", 8, rank, STATIC)
    made = export.export(one, tmp_path / "one.onnx", "qdq")
    kinds = kinds_of(tmp_path / "one.onnx", tmp_path)
    assert kinds.count("MatMul") + kinds.count("FusedMatMul") == 2 * one.model.depth
    assert not {"Gemm", "DequantizeLinear"} & set(kinds)
    assert not {"MatMulInteger", "DynamicQuantizeLinear", "Attention"} & {node.op_type for node in made.graph.node}
    stored = {constant.name: constant for constant in made.graph.initializer}
    zeros = [node.input[2] for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert zeros
    assert not any(numpy_helper.to_array(stored[name]).any() for name in zeros)


def test_openvino_multiplies_integers_and_agrees(rng, tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    one, images = artifact(rng, "vit_pico", 8, 8, STATIC | {"weight_bits": WEIGHT_BITS}, method="smoothquant")
    export.export(one, tmp_path / "one.onnx", "qdq")
    compiled = openvino.Core().compile_model(tmp_path / "one.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ops()
    kinds = [[node.get_rt_info()[name].value for name in ("layerType", "primitiveType")] for node in nodes]
    products = [primitive for kind, primitive in kinds if kind == "FullyConnected"]
    factors = sum(1 + (layer.rank > 0) for layer in one.plan.values())
    assert sum(primitive.lower().endswith("_i8") for primitive in products) == len(products) == factors
    got, want = compiled([images])[0], run(tmp_path / "one.onnx", images)
    assert np.abs(got - want).max() < rounding.FLIPPED * np.abs(want).max()


@pytest.mark.parametrize("of_heads", [False, True])
def test_kernels_of_four_bits_take_half_a_byte(rng, tmp_path, of_heads):
    """And become what an older opset stores in bytes: the same logits to the last bit, the same kernels when loaded."""
    if of_heads:
        one, images = test_by_head._float("vit_pico", rng)
        one = test_by_head._quantized(one, images, "per_tensor", "naive", weight_bits=4)
    else:
        one, images = artifact(rng, "vit_pico_dim64_depth1", 8, 8, STATIC | {"weight_bits": 4})
    narrow = export.export(one, tmp_path / "narrow.onnx", "qdq")
    wide = export.export(one, tmp_path / "wide.onnx", "qdq", opset=20)
    assert [made.opset_import[0].version for made in (narrow, wide)] == [21, 20]
    held = [[value for value in made.graph.initializer if value.data_type in KERNELS] for made in (narrow, wide)]
    narrow_kernels, wide_kernels = ([value for value in each if len(value.dims) == 2] for each in held)
    assert {value.data_type for value in narrow_kernels} == {onnx.TensorProto.INT4}
    stored = [sum(len(value.raw_data) for value in each) for each in (narrow_kernels, wide_kernels)]
    assert stored[0] <= stored[1] / 2 + len(narrow_kernels)
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("narrow", "wide")]
    nodes = 100 * len(narrow_kernels)  # A Cast of each.
    assert sizes[1] - sizes[0] > stored[1] - stored[0] - nodes
    np.testing.assert_array_equal(run(tmp_path / "narrow.onnx", images), run(tmp_path / "wide.onnx", images))
    kinds = [kinds_of(tmp_path / f"{name}.onnx", tmp_path) for name in ("narrow", "wide")]
    assert sorted(kinds[0]) == sorted(kinds[1])


def test_openvino_reads_kernels_of_four_bits(rng, tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    one, images = artifact(rng, "vit_pico_dim64_depth1", 8, 8, STATIC | {"weight_bits": 4})
    logits = []
    for opset in (20, 21):
        export.export(one, tmp_path / "one.onnx", "qdq", opset=opset)
        compiled = openvino.Core().compile_model(tmp_path / "one.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits.append(compiled([images])[0])
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"granularity": "per_token"}, "per_token scales.*'static'"),
        ({"granularity": "per_token_dynamic"}, "per_token_dynamic scales.*'static'"),
        ({"granularity": "per_tensor", "group": 8}, "groups of 8.*'static'"),
        ({"granularity": "per_tensor", "attention": "uniform"}, "uniform attention"),
    ],
)
def test_what_qdq_cannot_say_is_refused_before_any_work(rng, tmp_path, fields, mend):
    one, _ = artifact(rng, "vit_pico", 8)
    plan = {**one.plan, "blocks_0/attn/qkv": LayerPlan("quantized", bits=8, **fields)}
    odd = dataclasses.replace(one, params={}, meta={**one.meta, "plan": to_json(plan)})
    with pytest.raises(UserError, match=mend):
        export.export(odd, tmp_path / "one.onnx", "qdq")


def test_pixels_go_in_where_the_file_normalizes(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8)
    pixels = rng.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    images = ((pixels / 255 - np.array(one.preprocess.mean)) / np.array(one.preprocess.std)).astype(np.float32)
    export.export(one, tmp_path / "one.onnx", "qdq", images="uint8")
    right = rounding.exact(one, images)
    assert rounding.roundings(run(tmp_path / "one.onnx", pixels), right) < 4 * rounding.ROUNDINGS
    assert rounding.roundings(export.load(tmp_path / "one.onnx")(images), right) < 4 * rounding.ROUNDINGS


ROUND = {
    "float16": lambda kernel: kernel.astype(np.float16).astype(np.float32),
    "bfloat16": lambda kernel: np.asarray(jnp.asarray(kernel, jnp.bfloat16).astype(jnp.float32)),
    "int8": lambda kernel: np.asarray(qarray.quantize_kernel(kernel, 8).dequantize()),
    "int4": lambda kernel: np.asarray(qarray.quantize_kernel(kernel, 4, 32).dequantize()),
}


def plainly(path, images):
    """Logits without what ONNX Runtime makes of a graph: MatMulNBits rounds rows too."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize(
    ("weights", "target", "share"),
    [("float16", "avx2", 0.5), ("bfloat16", "qdq", 0.5), ("int8", "qdq", 0.25), ("int4", "avx2", 0.16)],
)
def test_weights_alone_are_rounded(rng, tmp_path, weights, target, share):
    """Against float64 on the kernels that the file is to hold."""
    one, images = artifact(rng, "vit_pico_dim64_depth1", 8)
    made = export.export(one, tmp_path / "one.onnx", target, weights=weights)
    leaves = trees.flatten(one.params)
    held = {path: ROUND[weights](leaf) if path.endswith("/kernel") else leaf for path, leaf in leaves.items()}
    right = rounding.exact(dataclasses.replace(one, params=trees.nest(held)), images)
    assert rounding.roundings(plainly(tmp_path / "one.onnx", images), right) < rounding.ROUNDINGS
    stored = sum(len(constant.raw_data) for constant in made.graph.initializer if "/kernel" in constant.name)
    kernels = sum(leaf.nbytes for path, leaf in leaves.items() if path.endswith("/kernel"))
    assert stored < (share + 0.03) * kernels


@pytest.mark.parametrize(("model", "rank", "asymmetric"), [("vit_pico_depth1", 8, False), ("vit_pico", 0, True)])
def test_activations_of_sixteen_bits_are_the_integer_kernels_with_float_rows(rng, tmp_path, model, rank, asymmetric):
    """Against float64 on the kernels that the integers stand for: far nearer than with 8 bits, on the images of the
    calibration, whose ranges little leaves."""
    one, images = artifact(rng, model, 8, rank, {**STATIC, "asymmetric": asymmetric})
    held = {}
    for path, layer in one.plan.items():
        weights = dict(trees.get(one.params, path))
        for name in ("u", "v") if layer.rank else ("kernel",):
            kernel = qarray.of(weights[name], layer.kernel_bits, layer.group, weights[name]["qvalue"].shape[0])
            weights[name] = np.asarray(kernel.dequantize())
        held[path] = {name: weights[name] for name in weights if name in ("u", "v", "kernel", "bias")}
    plan = {path: LayerPlan("low_rank" if layer.rank else "dense", layer.rank) for path, layer in one.plan.items()}
    floats = dataclasses.replace(one, params=trees.replace(one.params, held), meta={**one.meta, "plan": to_json(plan)})
    right = rounding.exact(floats, images)
    off = []
    for activations in ("int8", "uint16"):
        made = export.export(one, tmp_path / "one.onnx", "qdq", activations=activations)
        off.append(np.abs(export.load(tmp_path / "one.onnx")(images) - right).max() / np.abs(right).max())
    assert off[1] < min(3e-3, off[0] / 8)
    kinds = {constant.data_type for constant in made.graph.initializer if constant.name.startswith("constant_")}
    assert onnx.TensorProto.UINT16 in kinds
    assert made.opset_import[0].version == 21


@pytest.mark.parametrize("target", ["vnni", "qdq"])
def test_static_scales_are_the_models_to_the_last_bit(rng, tmp_path, target):
    """Of scales that change as they are multiplied and divided by the ends of the grid."""
    one, _ = artifact(rng, "vit_pico_depth1", 8, 0, STATIC)
    drawn = rng.random(4000).astype(np.float32)
    scales = iter(drawn[drawn * np.float32(127) / np.float32(127) != drawn])
    leaves = trees.flatten(one.params)
    params = {path: next(scales) if path.endswith("/x_scale") else leaf for path, leaf in leaves.items()}
    made = export.export(dataclasses.replace(one, params=trees.nest(params)), tmp_path / "one.onnx", target)
    constants = {constant.name: numpy_helper.to_array(constant) for constant in made.graph.initializer}
    written = [constants[node.input[1]] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    wanted = {float(leaf) for path, leaf in params.items() if path.endswith("/x_scale")}
    assert {float(scale) for scale in written} == wanted
    assert len(wanted) == len(one.plan)


def test_activations_of_sixteen_bits_are_of_static_qdq_files(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico_depth1", 8, 0, STATIC)
    for fields, mend in (({"target": "vnni"}, "is written for vnni"), ({"target": "qdq", "opset": 20}, "in opset 20")):
        with pytest.raises(UserError, match=mend):
            export.export(one, tmp_path / "one.onnx", activations="uint16", **fields)
    with pytest.raises(UserError, match="is a float model"):
        export.export(artifact(rng, "vit_pico_depth1", 8)[0], tmp_path / "one.onnx", "qdq", activations="uint16")


def test_a_quantized_model_has_no_other_weights_and_old_opsets_no_blocks(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico_depth1", 8, 0, STATIC)
    with pytest.raises(UserError, match=r"is quantized in patch_embed already.*onnx_weights='float32'"):
        export.export(one, tmp_path / "one.onnx", weights="int8")
    for fields, mend in (({"weights": "int4", "opset": 20}, "int4 in opset 20"), ({"opset": 16}, "opset is 16")):
        with pytest.raises(UserError, match=mend):
            export.export(dataclasses.replace(one, meta={**one.meta, "plan": {}}), tmp_path / "one.onnx", **fields)


def test_layers_are_compared_by_name(rng, tmp_path):
    one, images = artifact(rng, "vit_pico_depth1", 8, 0, STATIC | {"weight_bits": WEIGHT_BITS})
    made = export.export(one, tmp_path / "one.onnx", "qdq", exact=True)
    assert compare.worst(compare.compare(one, images, made)).alone < 1e-4
    pixels = export.export(one, tmp_path / "one.onnx", "qdq", images="uint8")
    with pytest.raises(UserError, match="reads pixels"):
        compare.compare(one, images, pixels)
