"""ONNX with integer kernels, written from the plan and the parameters: what a runtime computes is what the plan says.

`images (batch, size, size, 3) float32 -> logits (batch, classes) float32`, any batch, normalized as `preprocess` in the
metadata says. Tokens lie in two dimensions, (batch * tokens, features), around every product: ONNX Runtime has
integer kernels for such products alone.

    dense, low rank   Gemm
    static            QuantizeLinear, DequantizeLinear around a Gemm (QDQ), its bias in int32
    per token         the scaled input rounded to uint8, MatMulInteger, the scales multiplied

A kernel below 8 bits is stored in int4, where it has 4, and becomes int8 as the file is loaded.

Integers of the target. `avx2` is right on every machine: ONNX Runtime's kernels for AVX2 add two products of uint8 and
int8 in 16 bits, which saturate where weights exceed 64; those kernels are stored as uint8, whose sums are exact. `vnni`
and `arm` have exact dot products of uint8 and int8.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import onnx
from jaxtyping import Float, Int8
from onnx import TensorProto, helper, numpy_helper

from lraqvit_jax import __version__, checkpoint, metrics, models, trees
from lraqvit_jax.config import TARGETS
from lraqvit_jax.errors import UserError, nearest
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.models import swin
from lraqvit_jax.plan import LayerPlan, Plan
from lraqvit_jax.quant import qarray

OPSET, IR = 21, 10
"""Of the standard operators: int4 needs 21, ONNX Runtime 1.20 or newer. No other domain is used."""
EXACT = 64
"""Largest weight whose products with uint8, two added, fit in 16 bits: 2 * 255 * 64 < 2**15."""
ZERO = 128
"""What is added to integers in [-127, 127] to make them uint8."""


class Graph:
    """Nodes and constants so far; `inputs` has the features that each layer reads. Methods take and give names of
    values."""

    def __init__(self, target: str, exact: bool, inputs: Mapping[str, int]) -> None:
        self.target, self.exact, self.inputs = target, exact, inputs
        self.nodes, self.constants = list[Any](), dict[str, Any]()
        self._scope, self._count = "", 0

    def at(self, scope: str) -> None:
        """Where in the model the next nodes belong: the first part of their names."""
        self._scope = scope

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        self._count += 1
        name = f"{self._scope}/{kind}_{self._count}"
        names = [name] if outputs == 1 else [f"{name}:{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name if outputs == 1 else names

    def constant(self, value: Any, name: str = "", kind: int = 0) -> str:
        """A constant, once however often it is used.

        Args:
            value: array.
            name: within the scope; "" for one that has no meaning of its own.
            kind: `TensorProto.INT4`, which NumPy does not have, two to a byte; 0 is that of the array.
        """
        value = np.asarray(value)
        key = f"{self._scope}/{name}" if name else f"constant/{value.dtype}{list(value.shape)}/{hash(value.tobytes())}"
        if key not in self.constants:
            if kind:
                nibbles = np.append(value.reshape(-1), np.zeros(value.size % 2, np.int8)).astype(np.uint8) & 15
                packed = (nibbles[::2] | nibbles[1::2] << 4).tobytes()
                tensor = helper.make_tensor(key, kind, value.shape, packed, raw=True)
            else:
                tensor = numpy_helper.from_array(np.asarray(value, order="C"), key)
            self.constants[key] = tensor
        return key

    def shape(self, x: str, *sides: int) -> str:
        return self.add("Reshape", x, self.constant(np.asarray(sides, np.int64)))

    def transpose(self, x: str, *axes: int) -> str:
        return self.add("Transpose", x, perm=list(axes))

    def scaled(self, x: str, factor: Any) -> str:
        return self.add("Mul", x, self.constant(np.asarray(factor, np.float32)))


def export(
    artifact: checkpoint.Artifact, path: pathlib.Path, target: str = "avx2", exact: bool = False
) -> onnx.ModelProto:
    """Writes an artefact of any form; the branch of a reparam layer is merged into its pair.

    Args:
        artifact: model, parameters, plan.
        path: of the file.
        target: one of TARGETS.
        exact: what the JAX model computes, to compare with: where scales are static, activations clipped at -127 and a
            bias in float; kernels in groups as floats. Without it activations saturate at -128, the bias is an int32
            on the scale of the sums, and a runtime is free to round the rows of a product in groups once more, as
            their kernels have it. Where scales are dynamic and kernels are not in groups, nothing differs.

    Raises:
        UserError: no such target; products of attention on integers, which have no kernels worth having.
    """
    if target not in TARGETS:
        raise UserError(f"There is no ONNX target {target!r}; {nearest(target, TARGETS)}")
    graph, meta = Graph(target, exact, {info.path: info.features_in for info in artifact.spec.layers}), artifact.meta
    if found := obstacle(artifact.plan):
        raise UserError(f"{artifact.name} {found}")
    size, params = artifact.preprocess.size, checkpoint.host(artifact.params)
    module = models.variants()[models.split(meta["model"])[0]]
    build = {"vit": _vit, "swin": _swin}[module]
    logits = build(graph, artifact.model, params, artifact.plan)
    graph.at("")
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"], name="logits"))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", size, size, 3])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", meta["num_classes"]])
    made = helper.make_model(
        helper.make_graph(graph.nodes, meta["model"], [image], [answer], list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="lraqvit_jax",
        producer_version=__version__,
    )
    said = {"model": meta["model"], "num_classes": str(meta["num_classes"]), "target": target}
    said |= {name: json.dumps(meta[name]) for name in ("preprocess", "class_names", "plan")}
    helper.set_model_props(made, said)
    onnx.checker.check_model(made, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_atomically(path, made.SerializeToString())
    return made


def obstacle(plan: Plan) -> str:
    """Why a model of this plan cannot be written, as the rest of a sentence; "" if it can."""
    odd = next((path for path, layer in plan.items() if layer.attention != "float"), "")
    if not odd:
        return ""
    return (
        f"has {plan[odd].attention} attention products in {odd}, which ONNX runtimes have no kernels for; use its "
        "StableHLO file, or quantize with attention='float'."
    )


def load(path: pathlib.Path) -> Any:
    """Reads a file back, into ONNX Runtime on the CPU, as a function from images to logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": np.asarray(images)})[0]


def _vit(graph: Graph, model: Any, params: Any, plan: Plan) -> str:
    """The ViT of `models.vit`, node by node."""
    side, dim = model.image_size // model.patch_size, model.dim
    x = _patches(graph, "images", model.image_size, model.patch_size)
    x = _linear(graph, x, "patch_embed", params, plan, side * side)
    graph.at("embed")
    prefix = [params["cls_token"], *([params["dist_token"]] if model.distilled else [])]
    count, tokens = len(prefix), len(prefix) + side * side
    first = np.concatenate(prefix, 1) + params["pos_embed"][:, :count]
    x = graph.shape(x, -1, side * side, dim)
    x = graph.add("Add", x, graph.constant(params["pos_embed"][:, count:], "pos_embed"))
    batch = graph.add("Shape", "images", start=0, end=1)
    sides = graph.add("Concat", batch, graph.constant(np.asarray([count, dim], np.int64)), axis=0)
    prefixes = graph.add("Expand", graph.constant(first, "prefix"), sides)
    x = graph.shape(graph.add("Concat", prefixes, x, axis=1), -1, dim)
    for index in range(model.depth):
        block, where = params[f"blocks_{index}"], f"blocks_{index}"
        graph.at(f"{where}/norm1")
        y = _norm(graph, x, block["norm1"], model.norm_eps)
        y = _linear(graph, y, f"{where}/attn/qkv", params, plan, tokens, query=model.heads)
        graph.at(f"{where}/attn")
        y = _attention(graph, y, tokens, model.heads, dim)
        y = _linear(graph, y, f"{where}/attn/proj", params, plan, tokens, gamma=block.get("ls1_gamma"))
        graph.at(where)
        x = graph.add("Add", x, y)
        y = _norm(graph, x, block["norm2"], model.norm_eps)
        x = graph.add(
            "Add", x, _mlp(graph, y, f"{where}/mlp", model.gelu, params, plan, tokens, block.get("ls2_gamma"))
        )
    graph.at("head")
    x = graph.shape(x, -1, tokens, dim)
    heads = ["head", "head_dist"] if model.distilled else ["head"]
    logits = []
    for index, name in enumerate(heads):
        graph.at(name)
        row = graph.add("Gather", x, graph.constant(np.asarray(index)), axis=1)
        row = _norm(graph, row, params["norm"], model.norm_eps)
        logits.append(_linear(graph, row, name, params, plan, 1))
    return logits[0] if len(logits) == 1 else graph.scaled(graph.add("Add", *logits), 0.5)


def _swin(graph: Graph, model: Any, params: Any, plan: Plan) -> str:
    """The Swin of `models.swin`. Padding, shift and windows are one Gather of tokens, and so is the way back."""
    side = model.image_size // model.patch_size
    x = _patches(graph, "images", model.image_size, model.patch_size)
    x = _linear(graph, x, "patch_embed", params, plan, side * side)
    graph.at("patch_norm")
    x = _norm(graph, x, params["patch_norm"], swin.NORM_EPS)
    for path, part in model.chain():
        weights = trees.get(params, path)
        if isinstance(part, swin.PatchMerging):
            x, side = _merging(graph, x, path, part, params, plan), (part.side + 1) // 2
            continue
        dim = trees.get(weights, "norm1")["scale"].shape[0]
        padded = side + -side % part.window
        there, back = _window_order(side, part.window, part.shift)
        graph.at(f"{path}/norm1")
        y = graph.shape(_norm(graph, x, weights["norm1"], swin.NORM_EPS), -1, side * side, dim)
        if padded > side:  # Token side * side is of zeros.
            y = graph.add("Pad", y, graph.constant(np.asarray([0, 0, 0, 0, 1, 0], np.int64)))
        y = graph.shape(graph.add("Gather", y, graph.constant(there.reshape(-1)), axis=1), -1, dim)
        order = _window_order(padded, part.window, 0)[0].reshape(-1)
        y = _linear(graph, y, f"{path}/attn/qkv", params, plan, padded**2, query=part.heads, order=order)
        graph.at(f"{path}/attn")
        bias = _window_bias(graph, part, weights["attn"]["relative_position_bias_table"], padded)
        y = _attention(graph, y, part.window**2, part.heads, dim, bias)
        y = _linear(graph, y, f"{path}/attn/proj", params, plan, padded**2, order=order)
        graph.at(path)
        y = graph.add("Gather", graph.shape(y, -1, padded * padded, dim), graph.constant(back), axis=1)
        x = graph.add("Add", x, graph.shape(y, -1, dim))
        y = _norm(graph, x, weights["norm2"], swin.NORM_EPS)
        x = graph.add("Add", x, _mlp(graph, y, f"{path}/mlp", part.gelu, params, plan, side * side, None))
    graph.at("norm")
    dim = params["norm"]["scale"].shape[0]
    x = graph.shape(_norm(graph, x, params["norm"], swin.NORM_EPS), -1, side * side, dim)
    pooled = graph.add("ReduceMean", x, graph.constant(np.asarray([1], np.int64)), keepdims=0)
    return _linear(graph, pooled, "head", params, plan, 1)


def _patches(graph: Graph, images: str, size: int, patch: int) -> str:
    graph.at("patch_embed")
    side = size // patch
    x = graph.transpose(graph.shape(images, -1, side, patch, side, patch, 3), 0, 1, 3, 2, 4, 5)
    return graph.shape(x, -1, patch * patch * 3)


def _norm(graph: Graph, x: str, norm: Mapping[str, Any], eps: float) -> str:
    scale, bias = graph.constant(norm["scale"]), graph.constant(norm["bias"])
    return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)


def _attention(graph: Graph, qkv: str, tokens: int, heads: int, dim: int, bias: Any = None) -> str:
    """(rows, 3 dim) -> (rows, dim). The division by the root of a head's width is in the weights already."""
    x = graph.transpose(graph.shape(qkv, -1, tokens, 3, heads, dim // heads), 2, 0, 3, 1, 4)
    query, key, value = (graph.add("Gather", x, graph.constant(np.asarray(index)), axis=0) for index in range(3))
    logits = graph.add("MatMul", query, graph.transpose(key, 0, 1, 3, 2))
    logits = logits if bias is None else bias(logits)
    mixed = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), value)
    return graph.shape(graph.transpose(mixed, 0, 2, 1, 3), -1, dim)


def _mlp(graph: Graph, x: str, path: str, gelu: str, params: Any, plan: Any, tokens: int, gamma: Any) -> str:
    hidden = _linear(graph, x, f"{path}/fc1", params, plan, tokens)
    graph.at(path)
    hidden = graph.add("Gelu", hidden, approximate="tanh" if gelu == "tanh" else "none")
    return _linear(graph, hidden, f"{path}/fc2", params, plan, tokens, gamma=gamma)


def _merging(graph: Graph, x: str, path: str, part: Any, params: Any, plan: Any) -> str:
    """Four Gathers' worth of tokens in one: (batch, tokens, dim) -> (batch, quarter, 4 dim)."""
    graph.at(path)
    norm = trees.get(params, f"{path}/norm")
    side, half, wide = part.side, (part.side + 1) // 2, norm["scale"].shape[0]
    x = graph.shape(x, -1, side * side, wide // 4)
    if side % 2:
        x = graph.add("Pad", x, graph.constant(np.asarray([0, 0, 0, 0, 1, 0], np.int64)))
    place = np.full((2 * half, 2 * half), side * side)
    place[:side, :side] = np.arange(side * side).reshape(side, side)
    order = place.reshape(half, 2, half, 2).transpose(0, 2, 3, 1).reshape(-1)
    x = graph.shape(graph.add("Gather", x, graph.constant(order), axis=1), -1, wide)
    x = _norm(graph, x, norm, swin.NORM_EPS)
    return _linear(graph, x, f"{path}/reduction", params, plan, half * half)


def _window_order(side: int, window: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a map, padded and shifted, window by window (side * side is padding), and where each one then is."""
    padded = side + -side % window
    place = np.full((padded, padded), side * side)
    place[:side, :side] = np.arange(side * side).reshape(side, side)
    place = np.roll(place, (-shift, -shift), (0, 1))
    there = swin._windows(place[None, ..., None], window)[0, ..., 0]
    back = np.empty(side * side + 1, np.int64)
    back[there.reshape(-1)] = np.arange(padded * padded)
    return there.astype(np.int64), back[: side * side]


def _window_bias(graph: Graph, part: Any, table: Any, padded: int) -> Any:
    """`logits -> logits` with the relative position bias and, in shifted windows, the mask."""
    tokens, heads, windows = part.window**2, part.heads, (padded // part.window) ** 2

    def add(logits: str) -> str:
        index = graph.constant(swin.bias_index(part.window).astype(np.int64))
        bias = graph.transpose(graph.add("Gather", graph.constant(table, "bias_table"), index, axis=0), 2, 0, 1)
        logits = graph.add("Add", logits, bias)
        if not part.shift:
            return logits
        mask = swin.attention_mask(padded, part.window, part.shift)[:, None] < 0
        blocked = graph.add(
            "Where", graph.constant(mask), graph.constant(np.float32(swin.BLOCKED)), graph.constant(np.float32(0))
        )
        logits = graph.add("Add", graph.shape(logits, -1, windows, heads, tokens, tokens), blocked)
        return graph.shape(logits, -1, heads, tokens, tokens)

    return add


def _linear(
    graph: Graph,
    x: str,
    path: str,
    params: Any,
    plan: Plan,
    tokens: int,
    query: int = 0,
    gamma: Any = None,
    order: Any = None,
) -> str:
    """One linear layer on rows.

    Args:
        graph: to add to.
        x: (batch * tokens, m).
        path: of the layer.
        params: of the model.
        plan: of the model.
        tokens: of an image.
        query: where not 0, the number of heads: the first third of the outputs is divided by the root of their width.
        gamma: multiplies the outputs.
        order: of the tokens of x, where static scales for each token have another.
    """
    graph.at(path)
    layer, weights = plan[path], dict[str, Any](trees.get(params, path))
    weights |= reparam.merge(weights) if layer.form == "reparam" else {}
    names = ["u", "v"] if layer.rank else ["kernel"]
    last = weights[names[-1]]
    width = (last["scale"] if layer.form == "quantized" else last).shape[-1]
    factor = np.ones(width, np.float32)
    if query:
        factor[: width // 3] = (width // 3 // query) ** -0.5
    factor = factor if gamma is None else factor * gamma
    bias = weights["bias"] * factor if "bias" in weights else None
    if layer.form != "quantized":
        for name in names:
            kernel = np.asarray(weights[name], np.float32) * (factor if name == names[-1] else 1)
            added = [] if bias is None or name != names[-1] else [graph.constant(bias, "bias")]
            x = graph.add("Gemm" if added else "MatMul", x, graph.constant(kernel, name), *added)
        return x
    for name in names:
        part, ending = "z" if name == "v" else "x", name == names[-1]
        rows = graph.inputs[path] if name != "v" else layer.rank
        values = np.asarray(qarray.unpack(jnp.asarray(weights[name]["qvalue"]), layer.kernel_bits, rows))
        scale = np.asarray(weights[name]["scale"]) * (factor if ending else 1)
        found: Any = (weights.get(f"{part}_{one}") for one in ("scale", "center"))
        grid: Any = [one[order] if order is not None and np.ndim(one) else one for one in found]
        if part == "x" and "smooth" in weights:
            x = graph.scaled(x, 1 / weights["smooth"])
        product = Product(name, values, scale, bias if ending else None, *grid)
        if layer.group:
            x = _grouped(graph, x, product, layer, part, tokens)
        elif layer.granularity == "per_tensor":
            x = _static(graph, x, product, layer)
        else:
            x = _per_token(graph, x, product, layer, part, tokens)
    return x


class Product(NamedTuple):
    """One product on integers: its kernel, its bias, and the static grid of what it reads."""

    name: str
    values: Int8[np.ndarray, "m n"]
    scale: Float[np.ndarray, "..."]
    bias: Float[np.ndarray, " n"] | None
    x_scale: Float[np.ndarray, "..."] | None
    x_center: Float[np.ndarray, "..."] | None


def _static(graph: Graph, x: str, product: Product, layer: LayerPlan) -> str:
    """QDQ. A centre becomes the zero point; where that leaves uint8, it is subtracted, and made good in the bias."""
    step, limit = np.float32(product.x_scale), qarray.qmax(layer.bits)
    center = np.float32(0 if product.x_center is None else product.x_center)
    bias, zero = product.bias, ZERO - round(float(center / step))
    if not 0 <= zero <= 255:
        x = graph.add("Sub", x, graph.constant(center))
        made_good = center * (product.values.astype(np.float64).sum(0) * product.scale)
        bias, zero, center = made_good + (0 if bias is None else bias), ZERO, np.float32(0)
    if graph.exact or layer.bits < 8:
        ends = (graph.constant(np.float32(center + side * limit * step)) for side in (-1, 1))
        x = graph.add("Clip", x, *ends)
    grid = (graph.constant(step), graph.constant(np.uint8(zero)))
    rounded = graph.add("DequantizeLinear", graph.add("QuantizeLinear", x, *grid), *grid)
    stored, kernel_zero = _kernel(graph, product, layer)
    zeros = np.full(len(product.scale), ZERO if kernel_zero else 0, np.uint8 if kernel_zero else np.int8)
    kernel = graph.add(
        "DequantizeLinear",
        stored,
        graph.constant(product.scale, f"{product.name}_scale"),
        graph.constant(zeros),
        axis=1,
    )
    if bias is None:
        return graph.add("MatMul", rounded, kernel)
    unit = (step * product.scale).astype(np.float32)
    whole = np.round(np.asarray(bias, np.float64) / unit)
    if graph.exact or np.abs(whole).max() >= 2**31:
        added = graph.constant(np.asarray(bias, np.float32), "bias")
        return graph.add("Add", graph.add("MatMul", rounded, kernel), added)
    stored = graph.constant(whole.astype(np.int32), "bias")
    return graph.add("Gemm", rounded, kernel, graph.add("DequantizeLinear", stored, graph.constant(unit), axis=0))


def _per_token(graph: Graph, x: str, product: Product, layer: LayerPlan, part: str, tokens: int) -> str:
    """Codes by a scale for each token, MatMulInteger, scales and bias."""
    codes, step, center = _codes(graph, x, product, layer, part, tokens)
    stored, kernel_zero = _kernel(graph, product, layer)
    zeros = [graph.constant(np.uint8(ZERO))] + ([graph.constant(np.uint8(ZERO))] if kernel_zero else [])
    total = graph.add("Cast", graph.add("MatMulInteger", codes, stored, *zeros), to=TensorProto.FLOAT)
    y = graph.add("Mul", graph.add("Mul", total, step), graph.constant(product.scale, f"{product.name}_scale"))
    if center:
        sums = product.values.astype(np.float64).sum(0) * product.scale
        y = graph.add("Add", y, graph.add("Mul", center, graph.constant(sums.astype(np.float32)[None])))
    return y if product.bias is None else graph.add("Add", y, graph.constant(product.bias, "bias"))


def _grouped(graph: Graph, x: str, product: Product, layer: LayerPlan, part: str, tokens: int) -> str:
    """Groups of input channels: no runtime here has integer kernels for them; a float product of rounded values."""
    if layer.granularity == "per_tensor":
        step: Any = graph.constant(np.float32(product.x_scale))
        center: Any = None if product.x_center is None else graph.constant(np.float32(product.x_center))
        codes = _round(graph, x, step, center, qarray.qmax(layer.bits), clip=True)
    else:
        codes, step, center = _codes(graph, x, product, layer, part, tokens)
    rows = graph.add("Cast", codes, to=TensorProto.FLOAT)
    rows = graph.add("Mul", graph.add("Sub", rows, graph.constant(np.float32(ZERO))), step)
    rows = graph.add("Add", rows, center) if center else rows
    if graph.exact:  # From integers, ONNX Runtime makes a MatMulNBits, which rounds the rows once more.
        each = np.asarray(qarray.each_row(product.scale, len(product.values), layer.group))
        kernel = graph.constant(product.values * each, product.name)
    else:
        stored = graph.constant(product.values, product.name, TensorProto.INT4 if layer.kernel_bits == 4 else 0)
        scale = graph.constant(product.scale, f"{product.name}_scale")
        kernel = graph.add("DequantizeLinear", stored, scale, axis=0, block_size=layer.group)
    if product.bias is None:
        return graph.add("MatMul", rows, kernel)
    return graph.add("Gemm", rows, kernel, graph.constant(product.bias, "bias"))


def _codes(graph: Graph, x: str, product: Product, layer: LayerPlan, part: str, tokens: int) -> tuple[str, str, str]:
    """uint8 codes of rows, and the scale and centre of each ("" where that is 0): (batch * tokens, 1)."""
    limit, clip = qarray.qmax(layer.bits), layer.clip_of(part)
    if product.x_scale is not None:
        m, columns = product.values.shape[0], []
        x = graph.shape(x, -1, tokens, m)
        step = graph.constant(np.asarray(product.x_scale, np.float32))
        center = "" if product.x_center is None else graph.constant(np.asarray(product.x_center, np.float32))
        codes = graph.shape(_round(graph, x, step, center, limit, clip=True), -1, m)
        batch = graph.add("Shape", "images", start=0, end=1)
        sides = graph.add("Concat", batch, graph.constant(np.asarray([1, 1], np.int64)), axis=0)
        for one in (product.x_scale, product.x_center):
            if one is not None:  # The scales of an image, once for each image.
                each = graph.add("Expand", graph.constant(np.asarray(one, np.float32)[None]), sides)
                columns.append(graph.shape(each, -1, 1))
        return codes, columns[0], columns[1] if len(columns) > 1 else ""
    last = graph.constant(np.asarray([-1], np.int64))
    smallest = graph.constant(np.float32(qarray.SMALLEST))
    unit = np.float32(clip / limit)
    if not layer.asymmetric:
        largest = graph.add("ReduceMax", graph.add("Abs", x), last)
        step = graph.scaled(graph.add("Max", largest, smallest), unit)
        return _round(graph, x, step, "", limit, clip=clip < 1), step, ""
    high, low = graph.add("ReduceMax", x, last), graph.add("ReduceMin", x, last)
    half = graph.scaled(graph.add("Sub", high, low), 0.5)
    step = graph.scaled(graph.add("Max", half, smallest), unit)
    middle = graph.add("Div", graph.scaled(graph.add("Add", high, low), 0.5), step)
    center = graph.add("Mul", graph.add("Round", middle), step)
    return _round(graph, x, step, center, limit, clip=True), step, center


def _round(graph: Graph, x: str, step: str, center: str, limit: int, clip: bool) -> str:
    """uint8 codes of (x - center) / step, within +-limit where `clip` says that they may be outside."""
    x = graph.add("Sub", x, center) if center else x
    x = graph.add("Div", x, step)
    if clip:
        x = graph.add("Clip", x, graph.constant(np.float32(-limit)), graph.constant(np.float32(limit)))
    return graph.add("QuantizeLinear", x, graph.constant(np.float32(1)), graph.constant(np.uint8(ZERO)))


def _kernel(graph: Graph, product: Product, layer: LayerPlan) -> tuple[str, bool]:
    """The kernel as the target multiplies it exactly, and whether it is uint8 with the zero point ZERO."""
    values = product.values
    if layer.kernel_bits == 4:
        stored = graph.constant(values, product.name, TensorProto.INT4)
        return graph.add("Cast", stored, to=TensorProto.INT8), False
    if graph.target == "avx2" and np.abs(values.astype(int)).max() > EXACT:
        return graph.constant((values.astype(np.int16) + ZERO).astype(np.uint8), product.name), True
    return graph.constant(values, product.name), False
