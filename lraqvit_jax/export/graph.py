"""An ONNX graph as it is written: nodes, constants, and what the layers need to know."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from lraqvit_jax.quant import qarray
from lraqvit_jax.weights import artifacts

BLOCK = 32
"""Inputs that share a scale of a kernel of int4 in a float model."""


class Graph:
    """Nodes and constants so far. Methods take and give names of values.

    Attributes:
        target: see `export.onnx`.
        opset: of the standard operators.
        flat: whether tokens lie in two dimensions, (batch * tokens, features), or in three.
        exact: see `export.onnx.export`.
        params: of the artefact, on the host.
        plan: of the artefact.
        layers: the linear layers, as the plan leaves them, by path.
        orders: see `export.onnx.orders`.
        weights: see `export.onnx.export`.
        activations: likewise.
        images: the value of the normalized images.
    """

    def __init__(
        self,
        artifact: artifacts.Artifact,
        target: str,
        opset: int,
        exact: bool,
        orders: Mapping[str, np.ndarray],
        weights: str = "float32",
        activations: str = "int8",
    ) -> None:
        self.target, self.opset, self.flat = target, opset, target != "qdq"
        self.exact, self.orders, self.images = exact, orders, "images"
        self.weights, self.activations = weights, activations
        self.params, self.plan = artifacts.host(artifact.params), artifact.plan
        self.layers = {info.path: info for info in artifact.spec.layers}
        self.nodes, self.constants = list[Any](), dict[str, Any]()
        self._scope, self._count = "", 0
        self._once = dict[Any, str]()

    def at(self, scope: str) -> None:
        """Where in the model the next nodes belong: the first part of their names."""
        self._scope = scope

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        self._count += 1
        value = str(self._count)  # Short: in a small model the names of values would be 2 % of the file.
        names = [value] if outputs == 1 else [f"{value}:{index}" for index in range(outputs)]
        name = f"{self._scope}/{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return value if outputs == 1 else names

    def called(self, value: str, name: str) -> str:
        """Renames the output of a node that no other reads yet."""
        node = next(node for node in reversed(self.nodes) if value in node.output)
        node.output[list(node.output).index(value)] = name
        return name

    def constant(self, value: Any, name: str = "", kind: int = 0) -> str:
        """A constant, once however often it is used.

        Args:
            value: array.
            name: within the scope; "" for one that has no meaning of its own.
            kind: `TensorProto.INT4`, which NumPy does not have, two to a byte; 0 is that of the array.
        """
        value = np.asarray(value)
        if name:
            key = f"{self._scope}/{name}"
        else:
            key = self._once.setdefault((value.dtype, value.shape, value.tobytes()), f"constant_{len(self._once)}")
        if key not in self.constants:
            if kind:
                nibbles = np.append(value.reshape(-1), np.zeros(value.size % 2, np.int8)).astype(np.uint8) & 15
                packed = (nibbles[::2] | nibbles[1::2] << 4).tobytes()
                tensor = helper.make_tensor(key, kind, value.shape, packed, raw=True)
            else:
                tensor = numpy_helper.from_array(np.asarray(value, order="C"), key)
            self.constants[key] = tensor
        return key

    def kernel(self, value: Any, name: str) -> str:
        """The kernel (m, n) of a float product, stored as `weights` says."""
        value = np.asarray(value, np.float32)
        if self.weights in ("int8", "int4"):
            bits, group = (8, 0) if self.weights == "int8" else (4, BLOCK)
            array = qarray.quantize_kernel(value, bits, group)
            stored = self.constant(array.unpack(), name, TensorProto.INT4 if bits == 4 else 0)
            fields = {"axis": 0, "block_size": group} if group else {"axis": 1}
            return self.add("DequantizeLinear", stored, self.constant(array.scale, f"{name}_scale"), **fields)
        if self.weights == "float32":
            return self.constant(value, name)
        stored = self.constant(value.astype(self.weights), name)
        return self.add("Cast", stored, to=TensorProto.FLOAT)

    def shape(self, x: str, *sides: int) -> str:
        return self.add("Reshape", x, self.constant(np.asarray(sides, np.int64)))

    def rows(self, x: str, tokens: int, width: int) -> str:
        """What layers read, of a value with images in front that has any other shape: (batch * tokens, width) where the
        graph is flat, else (batch, tokens, width)."""
        return self.shape(x, -1, width) if self.flat else self.shape(x, -1, tokens, width)

    def joined(self, x: str, width: int) -> str:
        """`rows` of (batch, tokens, width)."""
        return self.shape(x, -1, width) if self.flat else x

    def by_image(self, x: str, tokens: int, width: int) -> str:
        """(batch, tokens, width) of `rows`."""
        return self.shape(x, -1, tokens, width) if self.flat else x

    def transpose(self, x: str, *axes: int) -> str:
        return self.add("Transpose", x, perm=list(axes))

    def scaled(self, x: str, factor: Any) -> str:
        return self.add("Mul", x, self.constant(np.asarray(factor, np.float32)))

    def batch(self, *sides: int) -> str:
        """The shape (images, *sides)."""
        if sides not in self._once:
            shape = self.add("Shape", self.images, start=0, end=1)
            if sides:
                shape = self.add("Concat", shape, self.constant(np.asarray(sides, np.int64)), axis=0)
            self._once[sides] = shape
        return self._once[sides]

    def one(self) -> str:
        """1.0, shape (1,), that no runtime folds into a constant: at least one image is there."""
        if "one" not in self._once:
            least = self.add("Min", self.batch(), self.constant(np.asarray([1], np.int64)))
            self._once["one"] = self.add("Cast", least, to=TensorProto.FLOAT)
        return self._once["one"]
