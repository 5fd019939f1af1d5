"""One linear layer as ONNX nodes, in each of its forms. Rows are (batch * tokens, features).

    dense, low rank   Gemm
    static            QuantizeLinear, DequantizeLinear around the first factor (QDQ); then MatMulInteger, scale, bias
    per token         the scaled input rounded, MatMulInteger, the scales multiplied, bias

The layer of query, key and value becomes three products with one input: nobody has to cut its output up.
"""

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int8
from onnx import TensorProto

from lraqvit_jax.base import trees
from lraqvit_jax.export import basis, operators
from lraqvit_jax.export.graph import Graph
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.plan import basis as plan_basis
from lraqvit_jax.plan.cost import LATER, kernel_shapes
from lraqvit_jax.plan.records import PACKED, LayerPlan
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
    inputs: int  # how many there are
    spread: Any = None  # where inputs are copied: from the stored kernel to one of all inputs; see `basis.spread`
    rows: Any = None  # where inputs are copied: which of them each head multiplies, (heads, rest)

    def whole(self) -> Int8[np.ndarray, "inputs n"]:
        """The kernel of all inputs, with zeros where one is copied."""
        return self.values if self.rows is None else plan_basis.spread(self.values, self.rows, self.inputs)

    def columns(self, parts: int) -> "list[Product]":
        """The product cut into as many of equal width."""
        if parts == 1:
            return [self]
        kernels, scales = (np.split(one, parts, -1) for one in (self.values, self.scale))
        biases = [None] * parts if self.bias is None else np.split(self.bias, parts)
        return [
            self._replace(name=f"{self.name}_{name}", values=kernel, scale=scale, bias=bias)
            for name, kernel, scale, bias in zip(OUTPUTS, kernels, scales, biases, strict=True)
        ]


def linear(graph: Graph, x: str, path: str, gamma: Any = None) -> list[str]:
    """Adds one linear layer.

    Args:
        graph: to add to.
        x: (rows, m), or where the graph is not flat (batch, tokens, m); of what is pooled always (batch, m).
        path: of the layer.
        gamma: multiplies the outputs.

    Returns:
        its output (..., n), or the OUTPUTS of a layer "qkv", each a third as wide.
    """
    x = graph.called(x, f"{path}:input")
    graph.at(path)
    layer, weights = graph.plan[path], dict[str, Any](trees.get(graph.params, path))
    weights |= reparam.merge(weights) if layer.form == "reparam" else {}
    pooled = not graph.flat and graph.layers[path].tokens == 1
    if pooled:
        x = graph.shape(x, -1, 1, graph.layers[path].features_in)
    parts = len(OUTPUTS) if path.endswith("/qkv") else 1
    if layer.form == "quantized":
        outputs = _quantized(graph, x, path, layer, weights, gamma, parts)
    else:
        outputs = _float(graph, x, path, layer, weights, gamma, parts)
    if pooled:
        outputs = [graph.shape(value, -1, graph.layers[path].features_out) for value in outputs]
    ends = OUTPUTS if parts > 1 else ("output",)
    return [graph.called(value, f"{path}:{end}") for value, end in zip(outputs, ends, strict=True)]


def _float(graph: Graph, x: str, path: str, layer: LayerPlan, weights: Any, gamma: Any, parts: int) -> list[str]:
    factor = np.float32(1) if gamma is None else gamma
    m = graph.layers[path].features_in
    if layer.rank:
        first = graph.kernel(weights["u"], "u")
        x = graph.add("MatMul", x, basis.spread(graph, first, weights, m) if layer.basis == "input" else first)
    if layer.basis in LATER:
        others = graph.add("MatMul", x, graph.kernel(weights["v"], "v"))
        return basis.joined(graph, x, others, layer, weights, gamma, parts, sum(weights["v"].shape))
    if layer.basis and not layer.rank:
        stored = graph.kernel(weights["kernel"], "kernel")
        return [graph.add("MatMul", x, basis.spread(graph, stored, weights, m))]
    name = "v" if layer.rank else "kernel"
    kernels = np.split(np.asarray(weights[name], np.float32) * factor, parts, 1)
    biases = np.split(weights["bias"] * factor, parts) if "bias" in weights else []
    outputs = []
    for index, kernel in enumerate(kernels):
        end = f"_{OUTPUTS[index]}" if parts > 1 else ""
        added = [graph.constant(biases[index], f"bias{end}")] if biases else []
        stored = graph.kernel(kernel, name + end)
        if added and not graph.flat:
            outputs.append(graph.add("Add", graph.add("MatMul", x, stored), *added))
        else:
            outputs.append(graph.add("Gemm" if added else "MatMul", x, stored, *added))
    return outputs


def _quantized(graph: Graph, x: str, path: str, layer: LayerPlan, weights: Any, gamma: Any, parts: int) -> list[str]:
    names = ["u", "v"] if layer.rank else ["kernel"]
    shapes, m = kernel_shapes(graph.layers[path], layer), graph.layers[path].features_in
    order, column, outputs = graph.orders.get(path), "", [x]
    for name in names:
        part, ending = "z" if name == "v" else "x", name == names[-1]
        copies, joins = name != "v" and layer.basis == "input", ending and layer.basis in LATER
        kernel = qarray.of(weights[name], layer.kernel_bits, layer.group, shapes[name][0])
        factor = gamma if ending and gamma is not None and not joins else np.float32(1)
        values, scale = np.asarray(kernel.unpack()), np.asarray(kernel.scale) * factor
        bias = weights["bias"] * factor if ending and "bias" in weights and not joins else None
        stored: Any = (weights.get(f"{part}_{one}") for one in ("scale", "center"))
        x_scale, x_center = (value[order] if order is not None and np.ndim(value) else value for value in stored)
        x = unscaled = outputs[0]
        smooth = weights.get("smooth" if part == "x" else "z_smooth")
        if smooth is not None:
            x = graph.scaled(x, 1 / smooth)
        spread = functools.partial(basis.spread, weights=weights, m=m) if copies else None
        inputs, rows = m if part == "x" else layer.rank, plan_basis.inputs_of(weights["basis"], m) if copies else None
        whole = Product(name, values, scale, bias, x_scale, x_center, inputs, spread, rows)
        products = whole.columns(parts if ending and not joins and graph.flat else 1)
        if not graph.flat:
            outputs = _split(graph, _qdq(graph, x, products, layer), parts if ending and not joins else 1)
            if not ending and layer.basis in LATER:  # Read twice, of which once by QuantizeLinear, a MatMul of ONNX
                outputs = [graph.shape(outputs[0], 0, 0, -1)]  # Runtime is of floats; a Reshape, which is free, is not.
        elif layer.group:
            outputs = _grouped(graph, x, products, layer, part)
        elif layer.granularity == "per_tensor":
            outputs = _static(graph, x, products, layer, ending)
        else:
            outputs, column = _per_token(graph, x, products, layer, part, column)
        if copies:
            outputs = [graph.add("Add", outputs[0], basis.copied(graph, unscaled, weights))]
        if joins:
            n = layer.rank + values.shape[1]
            outputs = basis.joined(graph, unscaled, outputs[0], layer, weights, gamma, parts, n)
    return outputs


def _split(graph: Graph, outputs: list[str], parts: int, axis: int = -1) -> list[str]:
    fields = {"num_outputs": parts} if graph.opset >= operators.AXES else {}  # Before, as many as it has outputs.
    return graph.add("Split", *outputs, outputs=parts, axis=axis, **fields) if parts > 1 else outputs


class StaticGrid(NamedTuple):
    """A static grid, as a runtime has it.

    Attributes:
        step: between two numbers.
        zero: the zero point, in the type of the codes.
        moved: what is taken from the input before, since its zero point would leave that type.
        ends: of what the model rounds.
    """

    step: np.float32
    zero: np.generic
    moved: np.float32
    ends: tuple[np.float32, np.float32]


def _grid(product: Product, layer: LayerPlan, codes: type[np.int8 | np.uint8 | np.uint16]) -> StaticGrid:
    """The grid of the plan; of uint16, one between the same ends."""
    bits = 16 if codes is np.uint16 else layer.bits
    limit = qarray.qmax(bits)
    step = np.float32(np.float32(product.x_scale) * (qarray.qmax(layer.bits) / limit))  # Of the plan, to the last bit.
    center = np.float32(0 if product.x_center is None else product.x_center)
    middle, kept = 0 if codes is np.int8 else _zero(bits), np.iinfo(codes)
    zero, moved = middle - round(float(center / step)), np.float32(0)
    if not kept.min <= zero <= kept.max:
        zero, moved, center = middle, center, np.float32(0)
    return StaticGrid(step, codes(zero), moved, (np.float32(center - limit * step), np.float32(center + limit * step)))


def _rounded(graph: Graph, x: str, grid: StaticGrid, layer: LayerPlan) -> tuple[str, list[str]]:
    """Codes of the input; scale and zero point."""
    x = graph.add("Sub", x, graph.constant(grid.moved)) if grid.moved else x
    if graph.exact or layer.bits < 8:
        x = graph.add("Clip", x, *map(graph.constant, grid.ends))
    names = [graph.constant(grid.step), graph.constant(grid.zero)]
    return graph.add("QuantizeLinear", x, *names), names


def _moved_bias(product: Product, grid: StaticGrid) -> np.ndarray | None:
    """The bias, which makes good what is taken from the input."""
    if not grid.moved:
        return product.bias
    sums = grid.moved * (product.values.astype(np.float64).sum(0) * product.scale)
    return np.asarray(sums + (0 if product.bias is None else product.bias), np.float32)


def _qdq(graph: Graph, x: str, products: list[Product], layer: LayerPlan) -> list[str]:
    """QuantizeLinear and DequantizeLinear, MatMul with a kernel behind DequantizeLinear, Add of a float bias, all in
    int8, or rows of uint16. The bias has three dimensions: of a MatMul and an Add of a vector ONNX Runtime makes a Gemm
    of floats."""
    grid = _grid(products[0], layer, np.uint16 if graph.activations == "uint16" else np.int8)
    codes, names = _rounded(graph, x, grid, layer)
    rows, outputs = graph.add("DequantizeLinear", codes, *names), []
    for product in products:
        stored, scale = _whole(graph, product, layer), graph.constant(product.scale)
        zeros, bias = graph.constant(np.zeros(product.scale.shape, np.int8)), _moved_bias(product, grid)
        y = graph.add("MatMul", rows, graph.add("DequantizeLinear", stored, scale, zeros, axis=1))
        outputs.append(y if bias is None else graph.add("Add", y, graph.constant(bias.reshape(1, 1, -1))))
    return outputs


def _whole(graph: Graph, product: Product, layer: LayerPlan) -> str:
    """The kernel of all inputs in int8; one of 4 bits is stored as such, and becomes int8 as the file is loaded."""
    if layer.kernel_bits == 4 and graph.opset >= operators.BLOCKS:
        return graph.add("Cast", graph.constant(product.whole(), product.name, TensorProto.INT4), to=TensorProto.INT8)
    return graph.constant(product.whole(), product.name)


def _static(graph: Graph, x: str, products: list[Product], layer: LayerPlan, ending: bool) -> list[str]:
    """QuantizeLinear; then the first factor of a plain pair as QDQ, which becomes one product with uint8 on both sides,
    as what it gives is rounded at once and has no other reader (if it had, a product of floats); else MatMulInteger,
    whose bias a runtime adds as it multiplies by the scale. A centre becomes the zero point; where that leaves uint8,
    it is subtracted, and made good in the bias."""
    grid = _grid(products[0], layer, np.uint8)
    codes, names = _rounded(graph, x, grid, layer)
    outputs = []
    for product in products:
        bias = _moved_bias(product, grid)
        stored, *zeros = _kernel(graph, product, layer)
        if ending or bias is not None or layer.basis:  # What leaves a factor with an identity block stays in float.
            total = graph.add("MatMulInteger", codes, stored, names[1], *zeros)
            outputs.append(_rescaled(graph, total, product.name, grid.step * product.scale, bias))
            continue
        zeros = zeros or [graph.constant(np.int8(0))]
        whole = [graph.add("Expand", one, graph.constant(np.asarray(product.scale.shape))) for one in zeros]
        scale = graph.constant(product.scale, f"{product.name}_scale")
        kernel = graph.add("DequantizeLinear", stored, scale, *whole, axis=1)
        outputs.append(graph.add("MatMul", graph.add("DequantizeLinear", codes, *names), kernel))
    return outputs


def _rescaled(graph: Graph, total: str, name: str, scale: np.ndarray, bias: np.ndarray | None) -> str:
    """Sums in int32 times the scale of each column, plus the bias.

    ONNX Runtime makes one node, MatMulIntegerToFloat, of MatMulInteger and what is here, if the scale is a product of
    two that it cannot fold before: one of them is a 1 that it does not know.
    """
    unit = graph.add("Mul", graph.one(), graph.constant(np.asarray(scale, np.float32), f"{name}_scale"))
    y = graph.add("Mul", graph.add("Cast", total, to=TensorProto.FLOAT), unit)
    return y if bias is None else graph.add("Add", y, graph.constant(np.asarray(bias, np.float32)))


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
    outputs, between = [], part == "x" and layer.rank and products[0].x_scale is None and not (center or layer.basis)
    for product in products:
        stored, *zeros = _kernel(graph, product, layer)
        total = graph.add("MatMulInteger", codes, stored, graph.constant(np.uint8(_zero(layer.bits))), *zeros)
        y = _rescaled(graph, total, product.name, product.scale, None)
        y = y if between else graph.add("Mul", y, step)
        if center:
            sums = product.values.astype(np.float64).sum(0) * product.scale
            y = graph.add("Add", y, graph.add("Mul", center, graph.constant(sums.astype(np.float32)[None])))
        outputs.append(y if product.bias is None else graph.add("Add", y, graph.constant(product.bias)))
    return outputs, step if between else ""


def _grouped(graph: Graph, x: str, products: list[Product], layer: LayerPlan, part: str) -> list[str]:
    """Groups of input channels: no runtime here has integer kernels for them; a float product of rounded values."""
    first, zero = products[0], _zero(layer.bits)
    if layer.granularity == "per_tensor":
        step: Any = graph.constant(np.float32(first.x_scale))
        inverse = graph.constant(1 / np.float32(first.x_scale))
        center: Any = None if first.x_center is None else graph.constant(np.float32(first.x_center))
        codes = _round(graph, x, inverse, center, layer.bits)
    else:
        codes, step, center = _codes(graph, x, first, layer, part)
    rows = graph.add("Cast", codes, to=TensorProto.FLOAT)
    rows = graph.add("Mul", graph.add("Sub", rows, graph.constant(np.float32(zero))), step)
    rows = graph.add("Add", rows, center) if center else rows
    outputs = []
    kernel: Any
    for product in products:
        if graph.exact:  # From integers, ONNX Runtime makes a MatMulNBits, which rounds the rows once more.
            each = np.asarray(qarray.each_row(product.scale, len(product.values), layer.group))
            kernel = _spread(graph, graph.constant(product.values * each, product.name), product, np.float32(0))
        else:
            kind = TensorProto.INT4 if layer.kernel_bits == 4 else 0
            stored = graph.constant(product.values, product.name, kind)
            scale = graph.constant(product.scale, f"{product.name}_scale")
            kernel = graph.add("DequantizeLinear", stored, scale, axis=0, block_size=layer.group)
            kernel = _spread(graph, kernel, product, np.float32(0))
        added = [] if product.bias is None else [graph.constant(product.bias)]
        outputs.append(graph.add("Gemm" if added else "MatMul", rows, kernel, *added))
    return outputs


def _codes(graph: Graph, x: str, product: Product, layer: LayerPlan, part: str) -> tuple[str, str, str]:
    """uint8 codes of rows, and the scale and centre of each ("" where that is 0): (rows, 1)."""
    limit, clip = qarray.qmax(layer.bits), layer.clip_of(part)
    if product.x_scale is not None:
        (tokens, _), m = product.x_scale.shape, product.inputs
        x = graph.shape(x, -1, tokens, m)
        inverse = graph.constant(1 / np.asarray(product.x_scale, np.float32))
        center = "" if product.x_center is None else graph.constant(np.asarray(product.x_center, np.float32))
        codes = graph.shape(_round(graph, x, inverse, center, layer.bits), -1, m)
        columns, sides = [], graph.batch(1, 1)
        for one in (product.x_scale, product.x_center):
            if one is not None:  # The scales of an image, once for each image.
                each = graph.add("Expand", graph.constant(np.asarray(one, np.float32)[None]), sides)
                columns.append(graph.shape(each, -1, 1))
        return codes, columns[0], columns[1] if len(columns) > 1 else ""
    smallest = graph.constant(np.float32(qarray.SMALLEST))
    unit = np.float32(clip / limit)
    high, low = (operators.over_row(graph, kind, x) for kind in ("ReduceMax", "ReduceMin"))
    if not layer.asymmetric:
        largest = graph.add("Max", high, graph.add("Neg", low), smallest)
        step = graph.scaled(largest, unit)
        return _round(graph, x, graph.add("Reciprocal", step), "", layer.bits, clip=clip < 1), step, ""
    half = graph.scaled(graph.add("Sub", high, low), 0.5)
    step = graph.scaled(graph.add("Max", half, smallest), unit)
    middle = graph.add("Div", graph.scaled(graph.add("Add", high, low), 0.5), step)
    center = graph.add("Mul", graph.add("Round", middle), step)
    return _round(graph, x, graph.add("Reciprocal", step), center, layer.bits), step, center


def _round(graph: Graph, x: str, inverse: str, center: str | None, bits: int, clip: bool = True) -> str:
    """uint8 codes of (x - center) / step, of which `inverse` is 1 / step; `clip` says that they may be beyond +-limit.
    (Not one QuantizeLinear with scales of rows: 2 % faster in ONNX Runtime, wrong in OpenVINO 2026.4.)"""
    limit = np.float32(qarray.qmax(bits))
    x = graph.add("Sub", x, center) if center else x
    x = graph.add("Mul", x, inverse)
    if clip and (graph.exact or bits < 8):
        x = graph.add("Clip", x, graph.constant(-limit), graph.constant(limit))
    return graph.add("QuantizeLinear", x, graph.constant(np.float32(1)), graph.constant(np.uint8(_zero(bits))))


def _zero(bits: int) -> int:
    """What makes unsigned integers of activations in [-limit, limit]; the largest is then 2**bits - 1."""
    return 2 ** (bits - 1)


def _kernel(graph: Graph, product: Product, layer: LayerPlan) -> list[str]:
    """The kernel as the target multiplies it exactly, and its zero point where that is not 0."""
    values, top = product.values, 2**layer.bits - 1
    if layer.kernel_bits == 4 and graph.opset >= operators.BLOCKS:
        stored = graph.add("Cast", graph.constant(values, product.name, TensorProto.INT4), to=TensorProto.INT8)
    elif layer.kernel_bits in PACKED:
        stored = _unpacked(graph, product, layer.kernel_bits)
    elif graph.target == "avx2" and 2 * top * np.abs(values.astype(int)).max() >= ROOM:
        stored = graph.constant((values.astype(np.int16) + ZERO).astype(np.uint8), product.name)
        return [_spread(graph, stored, product, np.uint8(ZERO)), graph.constant(np.uint8(ZERO))]
    else:
        stored = graph.constant(values, product.name)
    return [_spread(graph, stored, product, np.int8(0))]


def _unpacked(graph: Graph, product: Product, bits: int) -> str:
    """The kernel in int8, of bytes as `qarray.pack` fills them: ONNX has no integers of so many bits. All of it is of
    constants, and a runtime computes it once, as it loads the file. On bytes, in an opset whose runtimes all compute
    with them: ONNX Runtime keeps whatever it computes until it has loaded the file, in int32 four times as much."""
    dtype = np.uint8 if graph.opset >= operators.ATTENTION else np.int32
    packed, word, values = np.asarray(qarray.pack(jnp.asarray(product.values), bits)), math.lcm(bits, 8), list[str]()
    stored = graph.constant(packed, f"{product.name}_packed")
    if dtype is np.int32:
        stored = graph.add("Cast", stored, to=TensorProto.INT32)
    names = _split(graph, [stored], word // 8, axis=0)
    for at in range(0, word, bits):
        places = zip(range(-at, word - at, 8), names, strict=True)
        parts = [_taken(graph, name, place, bits, dtype) for place, name in places if -8 < place < bits]
        values.append(functools.reduce(functools.partial(graph.add, "Add"), parts))
    whole, rows = graph.add("Concat", *values, axis=0), len(product.values)
    if rows % (word // bits):
        ends = (graph.constant(np.asarray([end], np.int64)) for end in (0, rows, 0))
        whole = graph.add("Slice", whole, *ends)
    if dtype is np.uint8:
        return graph.add("Sub", graph.add("Cast", whole, to=TensorProto.INT8), graph.constant(np.int8(2 ** (bits - 1))))
    return graph.add("Cast", graph.add("Sub", whole, graph.constant(np.int32(2 ** (bits - 1)))), to=TensorProto.INT8)


def _taken(graph: Graph, x: str, place: int, bits: int, dtype: type[np.integer]) -> str:
    """What bytes hold of integers of so many bits, of which their lowest bit is number `place`. By remainders and
    divisions that leave none: OpenVINO folds others of bytes to the nearest, and shifts to the left saturate in it."""
    if place < 0:
        below = graph.constant(dtype(2**-place))
        x = graph.add("Div", graph.add("Sub", x, graph.add("Mod", x, below)), below)
    if place + 8 > bits:  # others lie above
        x = graph.add("Mod", x, graph.constant(dtype(2 ** (bits - max(place, 0)))))
    return graph.add("Mul", x, graph.constant(dtype(2**place))) if place > 0 else x


def _spread(graph: Graph, stored: str, product: Product, zero: np.generic) -> str:
    """The kernel of all inputs, with zeros where one is copied."""
    return product.spread(graph, stored, fill=zero) if product.spread else stored
