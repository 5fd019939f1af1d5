"""One linear layer as ONNX nodes, in each of its forms. Rows are (batch * tokens, features).

    dense, low rank   Gemm
    static            QuantizeLinear, DequantizeLinear around a Gemm (QDQ), its bias in int32
    per token         QuantizeLinear by rows, MatMulInteger, the scales multiplied

The layer of query, key and value becomes three products with one input: nobody has to cut its output up.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int8
from onnx import TensorProto

from lraqvit_jax import trees
from lraqvit_jax.export.graph import Graph
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.plan import LayerPlan
from lraqvit_jax.quant import qarray

OUTPUTS = ("query", "key", "value")
"""Of a layer "qkv", after a colon; that of any other layer is called "output"."""
ROOM = 2**15
"""Kernels of ONNX Runtime for AVX2 add two products of uint8 and int8 in 16 bits: the sum must stay below."""
ZERO = 128
"""Zero point of kernels that are stored as uint8."""


class Product(NamedTuple):
    """One product on integers: its kernel, its bias, and the static grid of what it reads."""

    name: str
    values: Int8[np.ndarray, "m n"]
    scale: Float[np.ndarray, "..."]
    bias: Float[np.ndarray, " n"] | None
    x_scale: Float[np.ndarray, "..."] | None
    x_center: Float[np.ndarray, "..."] | None

    def columns(self, parts: int) -> "list[Product]":
        """The product cut into as many of equal width."""
        if parts == 1:
            return [self]
        cut = [np.split(one, parts, -1) for one in (self.values, self.scale)]
        biases = [None] * parts if self.bias is None else np.split(self.bias, parts)
        names = [f"{self.name}_{name}" for name in OUTPUTS]
        grid = (self.x_scale, self.x_center)
        return [Product(*one, *grid) for one in zip(names, *cut, biases, strict=True)]


def linear(graph: Graph, x: str, path: str, gamma: Any = None) -> list[str]:
    """Adds one linear layer.

    Args:
        graph: to add to.
        x: (rows, m).
        path: of the layer.
        gamma: multiplies the outputs.

    Returns:
        its output (rows, n), or the OUTPUTS of a layer "qkv", each a third as wide.
    """
    graph.at(path)
    layer, weights = graph.plan[path], dict[str, Any](trees.get(graph.params, path))
    weights |= reparam.merge(weights) if layer.form == "reparam" else {}
    parts = len(OUTPUTS) if path.endswith("/qkv") else 1
    if layer.form == "quantized":
        found = _quantized(graph, x, path, layer, weights, gamma, parts)
    else:
        found = _float(graph, x, layer, weights, gamma, parts)
    ends = OUTPUTS if parts > 1 else ("output",)
    return [graph.called(value, f"{path}:{end}") for value, end in zip(found, ends, strict=True)]


def _float(graph: Graph, x: str, layer: LayerPlan, weights: Any, gamma: Any, parts: int) -> list[str]:
    factor = np.float32(1) if gamma is None else gamma
    if layer.rank:
        x = graph.add("MatMul", x, graph.constant(np.asarray(weights["u"], np.float32), "u"))
    name = "v" if layer.rank else "kernel"
    kernels = np.split(np.asarray(weights[name], np.float32) * factor, parts, 1)
    biases = np.split(weights["bias"] * factor, parts) if "bias" in weights else []
    found = []
    for index, kernel in enumerate(kernels):
        end = f"_{OUTPUTS[index]}" if parts > 1 else ""
        added = [graph.constant(biases[index], f"bias{end}")] if biases else []
        found.append(graph.add("Gemm" if added else "MatMul", x, graph.constant(kernel, name + end), *added))
    return found


def _quantized(graph: Graph, x: str, path: str, layer: LayerPlan, weights: Any, gamma: Any, parts: int) -> list[str]:
    names = ["u", "v"] if layer.rank else ["kernel"]
    order, column, found = graph.orders.get(path), "", [x]
    for name in names:
        part, ending = "z" if name == "v" else "x", name == names[-1]
        rows = graph.inputs[path] if name != "v" else layer.rank
        values = np.asarray(qarray.unpack(jnp.asarray(weights[name]["qvalue"]), layer.kernel_bits, rows))
        factor = gamma if ending and gamma is not None else np.float32(1)
        scale = np.asarray(weights[name]["scale"]) * factor
        bias = weights["bias"] * factor if ending and "bias" in weights else None
        stored: Any = (weights.get(f"{part}_{one}") for one in ("scale", "center"))
        grid: Any = [one[order] if order is not None and np.ndim(one) else one for one in stored]
        x = found[0]
        if part == "x" and "smooth" in weights:
            x = graph.scaled(x, 1 / weights["smooth"])
        products = Product(name, values, scale, bias, *grid).columns(parts if ending else 1)
        if layer.group:
            found = _grouped(graph, x, products, layer, part)
        elif layer.granularity == "per_tensor":
            found = _static(graph, x, products, layer)
        else:
            found, column = _per_token(graph, x, products, layer, part, column)
    return found


def _static(graph: Graph, x: str, products: list[Product], layer: LayerPlan) -> list[str]:
    """QDQ. A centre becomes the zero point; where that leaves uint8, it is subtracted, and made good in the bias."""
    first, limit = products[0], qarray.qmax(layer.bits)
    step = np.float32(first.x_scale)
    center = np.float32(0 if first.x_center is None else first.x_center)
    zero, moved = _zero(layer.bits) - round(float(center / step)), np.float32(0)
    if not 0 <= zero <= 255:
        x = graph.add("Sub", x, graph.constant(center))
        zero, moved, center = _zero(layer.bits), center, np.float32(0)
    if graph.exact or layer.bits < 8:
        ends = (graph.constant(np.float32(center + side * limit * step)) for side in (-1, 1))
        x = graph.add("Clip", x, *ends)
    grid = (graph.constant(step), graph.constant(np.uint8(zero)))
    rounded = graph.add("DequantizeLinear", graph.add("QuantizeLinear", x, *grid), *grid)
    return [_qdq(graph, rounded, product, layer, step, moved) for product in products]


def _qdq(graph: Graph, rounded: str, product: Product, layer: LayerPlan, step: np.float32, moved: np.float32) -> str:
    """The product of what a QDQ gives, on a grid of that step, less `moved`."""
    bias = product.bias
    if moved:
        made_good = moved * (product.values.astype(np.float64).sum(0) * product.scale)
        bias = made_good + (0 if bias is None else bias)
    stored, kernel_zero = _kernel(graph, product, layer)
    zeros = np.full(len(product.scale), ZERO if kernel_zero else 0, np.uint8 if kernel_zero else np.int8)
    scale = graph.constant(product.scale, f"{product.name}_scale")
    kernel = graph.add("DequantizeLinear", stored, scale, graph.constant(zeros), axis=1)
    if bias is None:
        return graph.add("MatMul", rounded, kernel)
    unit = (step * product.scale).astype(np.float32)
    whole = np.round(np.asarray(bias, np.float64) / unit)
    if graph.exact or np.abs(whole).max() >= 2**31:
        added = graph.constant(np.asarray(bias, np.float32))
        return graph.add("Add", graph.add("MatMul", rounded, kernel), added)
    stored = graph.constant(whole.astype(np.int32))
    return graph.add("Gemm", rounded, kernel, graph.add("DequantizeLinear", stored, graph.constant(unit), axis=0))


def _per_token(
    graph: Graph, x: str, products: list[Product], layer: LayerPlan, part: str, column: str
) -> tuple[list[str], str]:
    """Codes by a scale for each token, MatMulInteger, scales and bias.

    Args:
        graph: to add to.
        x: (rows, m).
        products: with one input.
        layer: of the plan.
        part: "x" or "z".
        column: (rows, 1), by which x is to be multiplied yet; "" is 1.

    Returns:
        the outputs, and the column by which they are to be multiplied yet: what is between two factors is rounded in
        shares of its largest value, which needs no scale.
    """
    codes, step, center = _codes(graph, x, products[0], layer, part)
    step = graph.add("Mul", step, column) if column else step
    found, between = [], part == "x" and layer.rank and products[0].x_scale is None and not center
    for product in products:
        stored, kernel_zero = _kernel(graph, product, layer)
        zeros = [graph.constant(np.uint8(_zero(layer.bits)))] + [graph.constant(np.uint8(ZERO))] * kernel_zero
        total = graph.add("Cast", graph.add("MatMulInteger", codes, stored, *zeros), to=TensorProto.FLOAT)
        scale = graph.constant(product.scale, f"{product.name}_scale")
        # ONNX Runtime makes one MatMulIntegerToFloat of these, if the scale is a product that it cannot fold.
        y = graph.add("Mul", total, graph.add("Mul", graph.one(), scale))
        y = y if between else graph.add("Mul", y, step)
        if center:
            sums = product.values.astype(np.float64).sum(0) * product.scale
            y = graph.add("Add", y, graph.add("Mul", center, graph.constant(sums.astype(np.float32)[None])))
        found.append(y if product.bias is None else graph.add("Add", y, graph.constant(product.bias)))
    return found, step if between else ""


def _grouped(graph: Graph, x: str, products: list[Product], layer: LayerPlan, part: str) -> list[str]:
    """Groups of input channels: no runtime here has integer kernels for them; a float product of rounded values."""
    first, zero = products[0], _zero(layer.bits)
    if layer.granularity == "per_tensor":
        step: Any = graph.constant(np.float32(first.x_scale))
        center: Any = None if first.x_center is None else graph.constant(np.float32(first.x_center))
        codes = _round(graph, x, step, center, layer.bits, clip=True)
    else:
        codes, step, center = _codes(graph, x, first, layer, part)
    rows = graph.add("Cast", codes, to=TensorProto.FLOAT)
    rows = graph.add("Mul", graph.add("Sub", rows, graph.constant(np.float32(zero))), step)
    rows = graph.add("Add", rows, center) if center else rows
    found = []
    for product in products:
        if graph.exact:  # From integers, ONNX Runtime makes a MatMulNBits, which rounds the rows once more.
            each = np.asarray(qarray.each_row(product.scale, len(product.values), layer.group))
            kernel = graph.constant(product.values * each, product.name)
        else:
            kind = TensorProto.INT4 if layer.kernel_bits == 4 else 0
            stored = graph.constant(product.values, product.name, kind)
            scale = graph.constant(product.scale, f"{product.name}_scale")
            kernel = graph.add("DequantizeLinear", stored, scale, axis=0, block_size=layer.group)
        added = [] if product.bias is None else [graph.constant(product.bias)]
        found.append(graph.add("Gemm" if added else "MatMul", rows, kernel, *added))
    return found


def _codes(graph: Graph, x: str, product: Product, layer: LayerPlan, part: str) -> tuple[str, str, str]:
    """uint8 codes of rows, and the scale and centre of each ("" where that is 0): (rows, 1)."""
    limit, clip = qarray.qmax(layer.bits), layer.clip_of(part)
    if product.x_scale is not None:
        (tokens, _), m = product.x_scale.shape, product.values.shape[0]
        x = graph.shape(x, -1, tokens, m)
        step = graph.constant(np.asarray(product.x_scale, np.float32))
        center = "" if product.x_center is None else graph.constant(np.asarray(product.x_center, np.float32))
        codes = graph.shape(_round(graph, x, step, center, layer.bits, clip=True), -1, m)
        columns, sides = [], graph.batch(1, 1)
        for one in (product.x_scale, product.x_center):
            if one is not None:  # The scales of an image, once for each image.
                each = graph.add("Expand", graph.constant(np.asarray(one, np.float32)[None]), sides)
                columns.append(graph.shape(each, -1, 1))
        return codes, columns[0], columns[1] if len(columns) > 1 else ""
    last = graph.constant(np.asarray([-1], np.int64))
    smallest = graph.constant(np.float32(qarray.SMALLEST))
    unit = np.float32(clip / limit)
    high, low = graph.add("ReduceMax", x, last), graph.add("ReduceMin", x, last)
    if not layer.asymmetric:
        largest = graph.add("Max", high, graph.add("Neg", low), smallest)
        step = graph.scaled(largest, unit)
        return _round(graph, x, step, "", layer.bits, clip=clip < 1), step, ""
    half = graph.scaled(graph.add("Sub", high, low), 0.5)
    step = graph.scaled(graph.add("Max", half, smallest), unit)
    middle = graph.add("Div", graph.scaled(graph.add("Add", high, low), 0.5), step)
    center = graph.add("Mul", graph.add("Round", middle), step)
    return _round(graph, x, step, center, layer.bits, clip=True), step, center


def _round(graph: Graph, x: str, step: str, center: str | None, bits: int, clip: bool) -> str:
    """uint8 codes of (x - center) / step, within +-limit where `clip` says that they may be outside; where they may
    not, `step` is (rows, 1) and one node does it."""
    limit, zero = qarray.qmax(bits), np.uint8(_zero(bits))
    x = graph.add("Sub", x, center) if center else x
    if not clip:
        steps = graph.shape(step, -1)
        zeros = graph.add("Expand", graph.constant(zero[None]), graph.add("Shape", steps))
        return graph.add("QuantizeLinear", x, steps, zeros, axis=0)
    x = graph.add("Div", x, step)
    x = graph.add("Clip", x, graph.constant(np.float32(-limit)), graph.constant(np.float32(limit)))
    return graph.add("QuantizeLinear", x, graph.constant(np.float32(1)), graph.constant(zero))


def _zero(bits: int) -> int:
    """What makes unsigned integers of activations in [-limit, limit]; the largest is then 2**bits - 1."""
    return 2 ** (bits - 1)


def _kernel(graph: Graph, product: Product, layer: LayerPlan) -> tuple[str, bool]:
    """The kernel as the target multiplies it exactly, and whether it is uint8 with the zero point ZERO."""
    values, top = product.values, 2**layer.bits - 1
    if layer.kernel_bits == 4:
        stored = graph.constant(values, product.name, TensorProto.INT4)
        return graph.add("Cast", stored, to=TensorProto.INT8), False
    if graph.target == "avx2" and 2 * top * np.abs(values.astype(int)).max() >= ROOM:
        return graph.constant((values.astype(np.int16) + ZERO).astype(np.uint8), product.name), True
    return graph.constant(values, product.name), False
