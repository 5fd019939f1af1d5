"""What other runtimes refuse of an ONNX file, by their published rules; none of them has to be installed.

python -m lraqvit_jax.export.rules FILE.onnx

prints, for each runtime of RULES, what it refuses, or that it takes the file. The rules are those of

* TensorRT 10.15: the support matrix of its ONNX parser (github.com/onnx/onnx-tensorrt, docs/operators.md) and what
  that parser asserts of QuantizeLinear and DequantizeLinear;
* QNN: the page of its execution provider for ONNX Runtime (version 2.3), for the HTP backend.

Exit codes: 0 done, 2 a mistake in the input, 1 a defect here.
"""

import argparse
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from lraqvit_jax.base import arguments
from lraqvit_jax.base.errors import UserError

TENSORRT_OPSETS = range(9, 25)
TENSORRT_LACKS = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv"}
"""Of the operators that we, and quantizers of others, write."""
TENSORRT_QUANTIZED = {TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1}
# fmt: off
QNN_OPERATORS = {
    "Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "Erf", "Expand", "Gather", "Gelu", "Gemm", "Identity",
    "LayerNormalization", "MatMul", "Max", "Min", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Reciprocal",
    "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Round", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt",
    "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
}
# fmt: on
"""Those of its list that we write, and Erf, which it knows within a Gelu."""
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


class File(NamedTuple):
    """A model, and what each of its values is.

    Attributes:
        model: the file.
        constants: by name.
        makers: by value, the node that puts it out.
        readers: by value, the nodes that read it.
    """

    model: onnx.ModelProto
    constants: Mapping[str, onnx.TensorProto]
    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, Sequence[onnx.NodeProto]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> "File":
        readers = dict[str, list[onnx.NodeProto]]()
        for node in model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        makers = {name: node for node in model.graph.node for name in node.output}
        return cls(model, {one.name: one for one in model.graph.initializer}, makers, readers)

    def kind(self, quantizer: onnx.NodeProto) -> int:
        """Of the integers of a QuantizeLinear or DequantizeLinear; uint8 where nothing says it."""
        zero = self.constants.get(quantizer.input[2]) if len(quantizer.input) > 2 else None
        stored = zero or (self.constants.get(quantizer.input[0]) if quantizer.op_type == QUANTIZERS[1] else None)
        return stored.data_type if stored else TensorProto.UINT8


def refused(model: onnx.ModelProto, runtime: str) -> list[str]:
    """What a runtime of RULES refuses of a file, a sentence each; [] is nothing.

    Raises:
        UserError: no rules of such a runtime.
    """
    if runtime not in RULES:
        raise UserError(f"There are no rules of {runtime!r}; name one of {', '.join(RULES)}.")
    return list(dict.fromkeys(RULES[runtime](File.of(model))))


def tensorrt(file: File) -> Iterator[str]:
    """Of TensorRT 10.15."""
    opset = next(one.version for one in file.model.opset_import if not one.domain)
    if opset not in TENSORRT_OPSETS:
        yield f"Opset {opset} is not among {TENSORRT_OPSETS[0]} to {TENSORRT_OPSETS[-1]}."
    for node in file.model.graph.node:
        if node.domain:
            yield f"{node.op_type} is of the domain {node.domain}, which needs a plugin."
        elif node.op_type in TENSORRT_LACKS:
            yield f"There is no {node.op_type}."
        elif node.op_type == "Attention":
            yield "Attention must have query, key and value of four dimensions."
        elif node.op_type in QUANTIZERS:
            yield from _tensorrt_quantizer(file, node)
    for image in file.model.graph.input:
        if image.type.tensor_type.elem_type == TensorProto.UINT8:
            readers = file.readers.get(image.name, ())
            if any(reader.op_type != "Cast" for reader in readers):
                yield f"{image.name} is uint8, which nothing but a Cast may read."


def _tensorrt_quantizer(file: File, node: onnx.NodeProto) -> Iterator[str]:
    if len(node.input) < 3:
        yield f"{node.op_type} must have a zero point."
        return
    scale, zero = (file.constants.get(name) for name in node.input[1:3])
    if file.kind(node) not in TENSORRT_QUANTIZED:
        yield f"{node.op_type} cannot be of {TensorProto.DataType.Name(file.kind(node)).lower()}; int8 is what it has."
    if scale is None or zero is None:
        yield f"{node.op_type} must have a constant scale and zero point."
        return
    if numpy_helper.to_array(zero).any():
        yield f"{node.op_type} must have zero points of 0."
    if not (numpy_helper.to_array(scale) > 0).all():
        yield f"{node.op_type} must have scales above 0."
    if node.op_type == "QuantizeLinear" and np.prod(scale.dims) > 1:
        yield "QuantizeLinear of activations must have one scale for a tensor."


def qnn(file: File) -> Iterator[str]:
    """Of QNN's HTP backend."""
    for value in (*file.model.graph.input, *file.model.graph.output):
        if free := [side.dim_param for side in value.type.tensor_type.shape.dim if side.dim_param]:
            yield (
                f"The side {free[0]!r} must be fixed: python -m onnxruntime.tools.make_dynamic_shape_fixed "
                f"--dim_param {free[0]} --dim_value 1 FILE.onnx FIXED.onnx."
            )
    shapes = {name for node in file.model.graph.node if node.op_type == "Shape" for name in node.output}
    for node in file.model.graph.node:
        if node.op_type not in QNN_OPERATORS and not shapes & set(node.output):  # A fixed shape is a constant.
            yield f"There is no {node.op_type}."
        elif node.op_type == "MatMul":
            yield from _qnn_product(file, node)


def _qnn_product(file: File, node: onnx.NodeProto) -> Iterator[str]:
    """A product of integers reads what two DequantizeLinear give, and QuantizeLinear alone reads it."""
    makers = [file.makers.get(name) for name in node.input]
    quantized = [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]
    if not quantized:
        return
    if len(quantized) < len(makers):
        yield "MatMul of an integer kernel with float rows has no kernel on HTP."
        return
    if any(file.kind(maker) not in (TensorProto.UINT8, TensorProto.UINT16) for maker in quantized):
        yield "MatMul on HTP is listed for uint8 and uint16 alone."
    if any(reader.op_type != "QuantizeLinear" for reader in file.readers.get(node.output[0], ())):
        yield "MatMul is of integers on HTP where a QuantizeLinear alone reads it; else it is computed in float16."


RULES: dict[str, Callable[[File], Iterator[str]]] = {"tensorrt": tensorrt, "qnn": qnn}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments.Parser("python -m lraqvit_jax.export.rules", __doc__)
    parser.add_argument("file", type=pathlib.Path, help="an ONNX file")
    return parser.parse_args(argv)


def command(argv: Sequence[str]) -> None:
    """Prints what is refused."""
    path = parse(argv).file
    try:
        model: Any = onnx.load(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as ONNX ({error}); name a file that the stage export wrote.") from error
    for runtime in RULES:
        reasons = refused(model, runtime)
        print(f"{runtime}: {'takes it' if not reasons else ''}".rstrip(), *(f"  {one}" for one in reasons), sep="\n")


if __name__ == "__main__":
    arguments.run(command)
