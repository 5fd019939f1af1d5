"""What other runtimes refuse of our files, by their published rules; each rule on a file that breaks it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.export import onnx as export
from lraqvit_jax.export import rules
from tests.unit.export.test_onnx import artifact


def made(rng, tmp_path, target, fields=None, **options):
    return export.export(artifact(rng, "vit_pico_depth1", 8, 0, fields)[0], tmp_path / "one.onnx", target, **options)


def test_tensorrt_takes_static_symmetric_files(rng, tmp_path):
    assert rules.refused(made(rng, tmp_path, "qdq", {"granularity": "per_tensor"}), "tensorrt") == []
    assert rules.refused(made(rng, tmp_path, "qdq", images="uint8"), "tensorrt") == []


def test_tensorrt_refuses_integers_of_onnxruntime_and_zero_points(rng, tmp_path):
    reasons = " ".join(rules.refused(made(rng, tmp_path, "vnni", {"granularity": "per_tensor"}), "tensorrt"))
    for reason in ("no MatMulInteger", "of uint8", "zero points of 0", "four dimensions"):
        assert reason in reasons
    fields = {"granularity": "per_tensor", "asymmetric": True}
    assert "zero points of 0" in " ".join(rules.refused(made(rng, tmp_path, "qdq", fields), "tensorrt"))


ZERO = np.int8(0)


def product(zero=ZERO, scale=0.1, activations=(), behind=False, opset=20, kind=TensorProto.FLOAT):
    """One product in QDQ."""
    values = {"scale": np.full(activations, scale, np.float32), "zero": np.full(activations, zero)}
    values |= {"kernel": np.zeros((4, 4), zero.dtype), "kernel_scale": np.ones(4, np.float32)}
    values |= {"kernel_zero": np.full(4, zero)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["rows"]),
        helper.make_node("DequantizeLinear", ["kernel", "kernel_scale", "kernel_zero"], ["weights"], axis=1),
        helper.make_node("MatMul", ["rows", "weights"], ["product"]),
    ]
    if behind:
        nodes.append(helper.make_node("QuantizeLinear", ["product", "scale", "zero"], ["codes_behind"]))
        nodes.append(helper.make_node("DequantizeLinear", ["codes_behind", "scale", "zero"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["product"], ["y"]))
    ends = [[helper.make_tensor_value_info(name, one, [2, 4])] for name, one in (("x", kind), ("y", TensorProto.FLOAT))]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", *ends, constants), opset_imports=[helper.make_opsetid("", opset)]
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"zero": np.int8(3)}, "zero points of 0"),
        ({"zero": np.uint8(0)}, "cannot be of uint8"),
        ({"scale": -0.1}, "scales above 0"),
        ({"activations": (4,)}, "one scale for a tensor"),
        ({"opset": 25}, "Opset 25"),
        ({"kind": TensorProto.UINT8}, "nothing but a Cast"),
    ],
)
def test_rules_of_tensorrt(fields, reason):
    reasons = rules.refused(product(**fields), "tensorrt")
    assert reasons == [] if reason is None else reason in " ".join(reasons)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"zero": np.uint8(128), "behind": True}, None),
        ({"zero": np.int8(0), "behind": True}, "uint8 and uint16"),
        ({"zero": np.uint8(128)}, "QuantizeLinear alone reads it"),
    ],
)
def test_rules_of_qnn(fields, reason):
    reasons = rules.refused(product(**fields), "qnn")
    assert reasons == [] if reason is None else reason in " ".join(reasons)


def test_qnn_wants_a_fixed_batch_and_no_attention(rng, tmp_path):
    reasons = " ".join(rules.refused(made(rng, tmp_path, "vnni"), "qnn"))
    assert "--dim_param batch" in reasons
    assert "no Attention" in reasons
    file = made(rng, tmp_path, "qdq")
    for value in (*file.graph.input, *file.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    assert rules.refused(file, "qnn") == []


def test_the_command_prints_them(rng, tmp_path, capsys):
    made(rng, tmp_path, "qdq", {"granularity": "per_tensor"})
    rules.command([str(tmp_path / "one.onnx")])
    printed = capsys.readouterr().out
    assert "tensorrt: takes it" in printed
    assert "qnn:\n  The side 'batch'" in printed
    (tmp_path / "none.onnx").write_bytes(b"none")
    with pytest.raises(UserError, match=r"none\.onnx cannot be read"):
        rules.command([str(tmp_path / "none.onnx")])
    with pytest.raises(UserError, match="no rules of 'coreml'; name one of tensorrt, qnn"):
        rules.refused(onnx.load(tmp_path / "one.onnx"), "coreml")
