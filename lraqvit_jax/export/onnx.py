"""ONNX with integer kernels, written from the plan and the parameters: what a runtime computes is what the plan says.

`images (batch, size, size, 3) float32 -> logits (batch, classes) float32`, any batch, normalized as `preprocess` in the
metadata says; of a model without a head, `features (batch, width)`. Tokens lie in two dimensions, (batch * tokens,
features), around every product: ONNX Runtime has integer kernels for such products alone. What every linear layer reads
and gives are values named after its path, "blocks_0/mlp/fc1:input" and ":output", or "blocks_0/attn/qkv:query", ":key"
and ":value".

In the last block of a ViT, only the tokens that the head reads go on behind the attention.

A kernel of 4 bits is stored in int4, one of 3, 5 or 6, and of 4 in an opset below 21, in bytes that hold several
(`quant.qarray.pack`): both become int8 as the file is loaded. Files of qdq have a byte for each integer of those.

Integers of the target. `avx2` is right on every machine: ONNX Runtime's kernels for AVX2 add two products of uint8 and
int8 in 16 bits, which hold them up to 7 bits of weights, or of activations; wider kernels are stored as uint8, whose
sums are exact and take a third longer. `vnni` and `arm` have exact dot products of uint8 and int8. `auto` is whichever
this machine has.

`qdq` is for runtimes that look for integers in a float graph, such as OpenVINO, TensorRT and QNN: a QuantizeLinear and
a DequantizeLinear in front of each MatMul, of int8, and one behind each kernel. Tokens lie in three dimensions, query,
key and value are one product, and Attention is spelled out. ONNX Runtime has integer kernels for it too, a little
slower; without VNNI these saturate where a kernel has more than 7 bits. Its activations may be of uint16 (W8A16).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from jaxtyping import Int
from onnx import TensorProto, helper

from lraqvit_jax.base import files, trees
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.base.version import VERSION
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.export import operators, targets
from lraqvit_jax.export.contract import contract
from lraqvit_jax.export.graph import Graph
from lraqvit_jax.export.linear import linear
from lraqvit_jax.models import swin, vit
from lraqvit_jax.options.export import ACTIVATIONS, INPUTS, OPSETS, WEIGHTS
from lraqvit_jax.plan.records import HEAD_PARTS, LayerPlan, Plan
from lraqvit_jax.weights import artifacts

FIRST = ("token", "first")
"""What pools nothing but tokens that come first."""
OPSET, QDQ_OPSET = 23, 20
"""Of the standard operators: Attention needs 23; ONNX Runtime 1.23 lacks the QuantizeLinear of 23, 1.24 has all. No
other domain is used. Of qdq: Gelu needs 20, and TensorRT 10 reads no more; kernels of 4 bits have a type from 21 on."""


def export(
    artifact: artifacts.Artifact,
    path: pathlib.Path,
    target: str = "avx2",
    exact: bool = False,
    *,
    opset: int = 0,
    images: str = "float32",
    weights: str = "float32",
    activations: str = "int8",
) -> onnx.ModelProto:
    """Writes an artefact of any form; the branch of a reparam layer is merged into its pair.

    Args:
        artifact: model, parameters, plan.
        path: of the file.
        target: one of TARGETS.
        exact: what the JAX model computes, to compare with: activations clipped at -127, kernels in groups as floats.
            Without it activations of 8 bits saturate at -128, which those with a dynamic scale, neither clipped nor
            asymmetric, never reach; and a runtime is free to round the rows of a product in groups once more, as their
            kernels have it.
        opset: of the standard operators, one of OPSETS; 0 is what the target needs. The version of the file's format
            follows from it.
        images: "float32", normalized, or "uint8", pixels, which the file normalizes.
        weights: how the kernels of a float model are stored, one of WEIGHTS. All are multiplied as float32: "float16"
            and "bfloat16" halve the file; "int8" has a scale for each output, "int4" one for BLOCK inputs of each.
        activations: of a qdq file with static scales, one of ACTIVATIONS: "uint16" rounds them on 65,535 steps between
            the same ends (W8A16), which is nearer to the float model than the artefact's own integers are. ONNX Runtime
            rounds them to 8 bits all the same where its session.qdq_matmulnbits_accuracy_level is not 1.

    Raises:
        UserError: no such target, opset, or type of images, weights or activations; what such a file cannot have of the
            plan.
    """
    target = targets.resolved(target)
    asked = {"opset": (opset, OPSETS), "images": (images, INPUTS), "weights": (weights, WEIGHTS)}
    for name, (value, choices) in (asked | {"activations": (activations, ACTIVATIONS)}).items():
        if value not in choices:
            raise UserError(f"{name} is {value!r}; {nearest(str(value), map(str, choices))}")
    if reason := obstacle(artifact.plan, target, opset, weights, activations):
        raise UserError(f"{artifact.name} {reason}")
    meta, size = artifact.meta, artifact.preprocess.size
    opset = opset or _opset(artifact.plan, target, weights, activations)
    graph = Graph(artifact, target, opset, exact, orders(artifact.model), weights, activations)
    graph.at("images")
    graph.images = _normalized(graph, artifact.preprocess) if images == "uint8" else "images"
    logits = (_swin if _is_swin(artifact.model) else _vit)(graph, artifact.model)
    graph.at("")
    said = contract(artifact, images)
    output = said["output"]
    graph.nodes.append(helper.make_node("Identity", [logits], [output["name"]], name=output["name"]))
    kind = TensorProto.UINT8 if images == "uint8" else TensorProto.FLOAT
    image = helper.make_tensor_value_info("images", kind, ["batch", size, size, 3])
    answer = helper.make_tensor_value_info(output["name"], TensorProto.FLOAT, output["shape"])
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(
        helper.make_graph(graph.nodes, meta["model"], [image], [answer], list(graph.constants.values())),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="lraqvit_jax",
        producer_version=VERSION,
    )
    properties = {"model": meta["model"], "num_classes": str(meta["num_classes"]), "target": target}
    properties |= {"activations": activations} if activations != "int8" else {}
    properties |= {name: json.dumps(value) for name, value in (said | {"plan": meta["plan"]}).items()}
    helper.set_model_props(made, properties)
    onnx.checker.check_model(made, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, made.SerializeToString())
    return made


def _opset(plan: Plan, target: str, weights: str, activations: str) -> int:
    """What the target needs, where no other is asked for."""
    if target != "qdq":
        return OPSET
    narrow = any(layer.form == "quantized" and layer.kernel_bits == 4 for layer in plan.values())
    return operators.BLOCKS if narrow or weights == "int4" or activations == "uint16" else QDQ_OPSET


def obstacle(
    plan: Plan, target: str = "avx2", opset: int = 0, weights: str = "float32", activations: str = "int8"
) -> str:
    """Why a model of this plan cannot be written for this target, as the rest of a sentence; "" if it can."""
    quantized = next((path for path, layer in plan.items() if layer.form == "quantized"), "")
    if activations != "int8" and not (quantized and target == "qdq"):
        what = "is a float model" if not quantized else f"is written for {target}"
        return (
            f"{what}, which has no activations of {activations}; take onnx_activations='int8', or "
            "onnx_target='qdq' and a model that is quantized with 'static'."
        )
    if activations != "int8" and 0 < opset < operators.BLOCKS:
        return f"cannot have activations of {activations} in opset {opset}; take onnx_opset={operators.BLOCKS}, or 0."
    if weights == "int4" and 0 < opset < operators.BLOCKS:
        return f"cannot have weights of int4 in opset {opset}; take onnx_opset={operators.BLOCKS}, or 0."
    reasons = (_layer_obstacle(path, layer, target, opset) for path, layer in plan.items())
    if reason := next(filter(None, reasons), ""):
        return reason
    if weights != "float32" and quantized:
        return f"is quantized in {quantized} already; take onnx_weights='float32', or export its float model."
    return ""


def _layer_obstacle(path: str, layer: LayerPlan, target: str, opset: int) -> str:
    if layer.attention != "float":
        return (
            f"has {layer.attention} attention products in {path}, which ONNX runtimes have no kernels for; use its "
            "StableHLO file, or quantize with attention='float'."
        )
    if layer.form != "quantized":
        return ""
    blocks = f"kernels in groups of {layer.group}" if layer.group else ""
    if target == "qdq" and (blocks or layer.granularity != "per_tensor"):
        return (
            f"has {blocks or layer.granularity + ' scales'} in {path}, which QuantizeLinear around MatMul cannot say; "
            "quantize with 'static', or choose another target."
        )
    if 0 < opset < operators.BLOCKS and blocks:
        return f"has {blocks} in {path}, which opset {opset} lacks; take onnx_opset={operators.BLOCKS}, or 0."
    return ""


def _normalized(graph: Graph, preprocess: Preprocess) -> str:
    """Pixels of uint8 as the model reads them."""
    mean, std = (np.asarray(one, np.float64) for one in (preprocess.mean, preprocess.std))
    values = graph.scaled(graph.add("Cast", "images", to=TensorProto.FLOAT), 1 / (255 * std))
    return graph.add("Add", values, graph.constant(np.asarray(-mean / std, np.float32)))


def load(path: pathlib.Path) -> Any:
    """Reads a file back, into ONNX Runtime on the CPU, as a function from normalized images to logits, whatever the
    file reads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if any(one.key == "activations" for one in onnx.load(path, load_external_data=False).metadata_props):
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # Else rows get 8 bits again.
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (read,) = session.get_inputs()
    if read.type != "tensor(uint8)":
        return lambda images: session.run(None, {"images": np.asarray(images)})[0]
    preprocess = json.loads(session.get_modelmeta().custom_metadata_map["preprocess"])
    mean, std = (np.asarray(preprocess[name], np.float32) for name in ("mean", "std"))

    def run(images: Any) -> Any:
        pixels = np.rint((np.asarray(images) * std + mean) * 255).clip(0, 255)
        return session.run(None, {"images": pixels.astype(np.uint8)})[0]

    return run


def orders(model: Any) -> dict[str, Int[np.ndarray, " rows"]]:
    """By path, the tokens of an image, as the model has them, that are the rows of a layer in the graph; for layers
    whose rows are not all tokens in order."""
    if not _is_swin(model):
        if model.pool not in FIRST:
            return {}
        block, kept = f"blocks_{model.depth - 1}", np.arange(model.first)
        return {f"{block}/{layer}": kept for layer in ("attn/proj", "mlp/fc1", "mlp/fc2")}
    by_path, side = dict[str, Any](), model.image_size // model.patch_size
    for path, part in model.chain():
        if isinstance(part, swin.PatchMerging):
            side = (part.side + 1) // 2
            continue
        order = _window_order(side + -side % part.window, part.window, 0)[0].reshape(-1)
        by_path |= {f"{path}/attn/{name}": order for name in ("qkv", *HEAD_PARTS, "proj")}
    return by_path


def _is_swin(model: Any) -> bool:
    return isinstance(model, swin.Swin)


def _vit(graph: Graph, model: Any) -> str:
    """The ViT of `models.vit`, node by node."""
    params, dim = graph.params, model.dim
    patches = (model.image_size // model.patch_size) ** 2
    x = _patches(graph, model.image_size, model.patch_size)
    (x,) = linear(graph, x, "patch_embed")
    graph.at("embed")
    first, count, tokens = model.first, model.prefix, model.prefix + patches
    positions = params["pos_embed"]
    x = graph.add("Add", graph.by_image(x, patches, dim), graph.constant(positions[:, first:], "pos_embed"))
    if count:
        names = [name for name in ("cls_token", "dist_token") if name in params]
        prefix = np.concatenate([np.zeros((1, 0, dim), np.float32), *(params[name] for name in names)], 1)
        registers = [params["reg_token"]] if model.registers else []
        prefix = np.concatenate([prefix + positions[:, :first], *registers], 1)
        prefixes = graph.add("Expand", graph.constant(prefix, "prefix"), graph.batch(count, dim))
        x = graph.add("Concat", prefixes, x, axis=1)
    x = graph.joined(x, dim)
    if model.pre_norm:
        x = _norm(graph, x, params["norm_pre"], model.norm_eps)
    for index in range(model.depth):
        block, where = params[f"blocks_{index}"], f"blocks_{index}"
        kept = first if index == model.depth - 1 and model.pool in FIRST else tokens
        graph.at(f"{where}/norm1")
        parts = _projections(graph, _norm(graph, x, block["norm1"], model.norm_eps), f"{where}/attn")
        graph.at(f"{where}/attn")
        if model.qk_norm:
            parts = _qk_norm(graph, parts, block["attn"], model, tokens)
        widths = _widths(graph, f"{where}/attn", dim)
        y = _attention(graph, parts, tokens, model.heads, dim, widths, kept=kept)
        (y,) = linear(graph, y, f"{where}/attn/proj", block.get("ls1_gamma"))
        graph.at(where)
        x = graph.add("Add", _first(graph, x, tokens, kept, dim), y)
        y = _norm(graph, x, block["norm2"], model.norm_eps)
        x = graph.add("Add", x, _mlp(graph, y, f"{where}/mlp", model.gelu, block.get("ls2_gamma")))
    if model.pool not in FIRST:
        return _head(graph, _pooled(graph, x, model, tokens), model, "head")
    graph.at("head")
    x = graph.by_image(x, first, dim)
    logits = []
    for index, name in enumerate(["head", "head_dist"] if model.two_heads else ["head"]):
        graph.at(name)
        row = graph.add("Gather", x, graph.constant(np.asarray(index)), axis=1)
        logits.append(_head(graph, _norm(graph, row, params["norm"], model.norm_eps), model, name))
    return logits[0] if len(logits) == 1 else graph.scaled(graph.add("Add", *logits), 0.5)


def _head(graph: Graph, x: str, model: Any, name: str) -> str:
    """Logits of what is pooled, (batch, dim), or features."""
    if model.projection:
        x = graph.add("Identity", linear(graph, x, "project")[0])
    return linear(graph, x, name)[0] if model.num_classes else x


def _qk_norm(graph: Graph, parts: list[str], attn: Mapping[str, Any], model: Any, tokens: int) -> list[str]:
    """Queries and keys behind the LayerNorm that each head has for them."""
    made = []
    for part, name in zip(parts, ("q_norm", "k_norm"), strict=False):
        rows = graph.shape(part, -1, model.dim // model.heads)
        made.append(graph.rows(_norm(graph, rows, attn[name], model.norm_eps), tokens, model.dim))
    return [*made, parts[2]]


def _pooled(graph: Graph, x: str, model: Any, tokens: int) -> str:
    """What is pooled and the last LayerNorm, in the model's order: (rows, dim) -> (batch, dim), or twice as many."""
    graph.at("norm")
    norm = graph.params["norm"]
    x = x if model.pool == "avg" else _norm(graph, x, norm, model.norm_eps)
    x = graph.by_image(x, tokens, model.dim)
    ends = (graph.constant(np.asarray([one], np.int64)) for one in (model.prefix, tokens, 1))
    seen = graph.add("Slice", x, *ends) if model.prefix else x
    if model.pool == "map":
        return _attention_pool(graph, seen, model, tokens - model.prefix)
    mean = operators.mean(graph, seen)
    if model.pool == "concat":
        return graph.add("Concat", graph.add("Gather", x, graph.constant(np.asarray(0)), axis=1), mean, axis=1)
    return _norm(graph, mean, norm, model.norm_eps) if model.pool == "avg" else mean


def _attention_pool(graph: Graph, x: str, model: Any, tokens: int) -> str:
    """One query for all tokens, and an MLP: (batch, tokens, dim) -> (batch, dim)."""
    dim, where = model.dim, "attn_pool"
    latent = graph.add("Expand", graph.constant(graph.params[where]["latent"], "latent"), graph.batch(1, dim))
    (query,) = linear(graph, graph.shape(latent, -1, dim), f"{where}/q")
    (pair,) = linear(graph, graph.joined(x, dim), f"{where}/kv")
    graph.at(where)
    y = _attention(graph, [query, *_halves(graph, pair, dim)], tokens, model.heads, dim, (dim, dim), queries=1)
    (y,) = linear(graph, y, f"{where}/proj")
    graph.at(where)
    normed = _norm(graph, y, graph.params[where]["norm"], model.norm_eps)
    return graph.add("Add", y, _mlp(graph, normed, f"{where}/mlp", model.gelu, None))


def _halves(graph: Graph, x: str, half: int) -> list[str]:
    """The first and the second half of the features: (..., 2 half) -> two of (..., half)."""
    first, second = graph.add("Split", x, graph.constant(np.asarray([half, half], np.int64)), outputs=2, axis=-1)
    return [first, second]


def _swin(graph: Graph, model: Any) -> str:
    """The Swin of `models.swin`. Padding, shift and windows are one Gather of tokens, and so is the way back."""
    params, side = graph.params, model.image_size // model.patch_size
    (x,) = linear(graph, _patches(graph, model.image_size, model.patch_size), "patch_embed")
    graph.at("patch_norm")
    x = _norm(graph, x, params["patch_norm"], swin.NORM_EPS)
    for path, part in model.chain():
        weights = trees.get(params, path)
        if isinstance(part, swin.PatchMerging):
            x, side = _merging(graph, x, path, part), (part.side + 1) // 2
            continue
        dim = weights["norm1"]["scale"].shape[0]
        padded = side + -side % part.window
        there, back = _window_order(side, part.window, part.shift)
        graph.at(f"{path}/norm1")
        y = graph.by_image(_norm(graph, x, weights["norm1"], swin.NORM_EPS), side * side, dim)
        if padded > side:  # Token side * side is of zeros.
            y = graph.add("Pad", y, graph.constant(np.asarray([0, 0, 0, 0, 1, 0], np.int64)))
        y = graph.rows(graph.add("Gather", y, graph.constant(there.reshape(-1)), axis=1), part.window**2, dim)
        parts = _projections(graph, y, f"{path}/attn")
        graph.at(f"{path}/attn")
        bias = _window_bias(graph, part, weights["attn"]["relative_position_bias_table"], padded)
        widths = _widths(graph, f"{path}/attn", dim)
        y = _attention(graph, parts, part.window**2, part.heads, dim, widths, bias)
        (y,) = linear(graph, y, f"{path}/attn/proj")
        graph.at(path)
        y = graph.add("Gather", graph.shape(y, -1, padded * padded, dim), graph.constant(back), axis=1)
        x = graph.add("Add", x, graph.joined(y, dim))
        y = _norm(graph, x, weights["norm2"], swin.NORM_EPS)
        x = graph.add("Add", x, _mlp(graph, y, f"{path}/mlp", part.gelu, None))
    graph.at("norm")
    dim = params["norm"]["scale"].shape[0]
    x = graph.by_image(_norm(graph, x, params["norm"], swin.NORM_EPS), side * side, dim)
    pooled = operators.mean(graph, x)
    return linear(graph, pooled, "head")[0] if model.num_classes else pooled


def _patches(graph: Graph, size: int, patch: int) -> str:
    graph.at("patch_embed")
    side, images = size // patch, graph.images
    if size % patch:
        ends = ([0, 0], [side * patch] * 2, [1, 2])
        images = graph.add("Slice", images, *(graph.constant(np.asarray(one, np.int64)) for one in ends))
    x = graph.transpose(graph.shape(images, -1, side, patch, side, patch, 3), 0, 1, 3, 2, 4, 5)
    return graph.rows(x, side * side, patch * patch * 3)


def _norm(graph: Graph, x: str, norm: Mapping[str, Any], eps: float) -> str:
    scale, bias = graph.constant(norm["scale"]), graph.constant(norm["bias"])
    return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)


def _first(graph: Graph, rows: str, tokens: int, kept: int, dim: int) -> str:
    """Rows of the first `kept` tokens of every image, of those of all."""
    if kept == tokens:
        return rows
    ends = (graph.constant(np.asarray([one], np.int64)) for one in (0, kept, 1))
    return graph.joined(graph.add("Slice", graph.by_image(rows, tokens, dim), *ends), dim)


def _projections(graph: Graph, x: str, path: str) -> list[str]:
    """Query, key and value of the attention at that path, of one layer or of three: (rows, heads * channels) each."""
    if f"{path}/query" not in graph.plan:
        return linear(graph, x, f"{path}/qkv")
    # Each has a name for what it reads.
    return [linear(graph, graph.add("Identity", x), f"{path}/{name}")[0] for name in HEAD_PARTS]


def _widths(graph: Graph, path: str, dim: int) -> tuple[int, int]:
    """Features of query and of value, all heads together."""
    query, value = (graph.layers.get(f"{path}/{name}") for name in ("query", "value"))
    return (query.features_out, value.features_out) if query and value else (dim, dim)


def _attention(
    graph: Graph,
    parts: list[str],
    tokens: int,
    heads: int,
    dim: int,
    widths: tuple[int, int],
    bias: str = "",
    kept: int = 0,
    queries: int = 0,
) -> str:
    """Query, key and value, (rows, heads * channels) each, -> (rows, heads * channels of value), of the first `kept`
    tokens; 0 is all. `widths` are those of query and value, `dim` that of a dense model's. `queries` is how many there
    are to each image, where they are not the tokens: (batch * queries, ...)."""
    (query, *others), (wide, out), there = parts, widths, queries or tokens
    if queries:
        query = graph.shape(query, -1, queries, wide)
    else:
        query = graph.by_image(_first(graph, query, there, kept or there, wide), kept or there, wide)
    key, value = (graph.by_image(one, tokens, width) for one, width in zip(others, (wide, out), strict=True))
    y = operators.attention(
        graph, (query, key, value), heads, widths, (dim // heads) ** -0.5, bias, kept or there, tokens
    )
    return graph.shape(y, -1, out) if queries else graph.joined(y, out)


def _mlp(graph: Graph, x: str, path: str, gelu: str, gamma: Any) -> str:
    (hidden,) = linear(graph, x, f"{path}/fc1")
    graph.at(path)
    if gelu == "swiglu":
        gate, value = _halves(graph, hidden, graph.layers[f"{path}/fc2"].features_in)
        hidden = graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), value)
    elif gelu == "quick":
        hidden = graph.add("Mul", hidden, graph.add("Sigmoid", graph.scaled(hidden, vit.QUICK)))
    else:
        hidden = operators.gelu(graph, hidden, approximate=gelu == "tanh")
    return linear(graph, hidden, f"{path}/fc2", gamma)[0]


def _merging(graph: Graph, x: str, path: str, part: Any) -> str:
    """Four Gathers' worth of tokens in one: (batch, tokens, dim) -> (batch, quarter, 4 dim)."""
    graph.at(path)
    norm = trees.get(graph.params, f"{path}/norm")
    side, half, wide = part.side, (part.side + 1) // 2, norm["scale"].shape[0]
    x = graph.by_image(x, side * side, wide // 4)
    if side % 2:
        x = graph.add("Pad", x, graph.constant(np.asarray([0, 0, 0, 0, 1, 0], np.int64)))
    place = np.full((2 * half, 2 * half), side * side)
    place[:side, :side] = np.arange(side * side).reshape(side, side)
    order = place.reshape(half, 2, half, 2).transpose(0, 2, 3, 1).reshape(-1)
    x = graph.rows(graph.add("Gather", x, graph.constant(order), axis=1), half * half, wide)
    return linear(graph, _norm(graph, x, norm, swin.NORM_EPS), f"{path}/reduction")[0]


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


def _window_bias(graph: Graph, part: Any, table: Any, padded: int) -> str:
    """What is added to the attention, (1, heads, tokens, tokens): the relative position bias; in shifted windows with
    the mask, (batch * windows, heads, tokens, tokens)."""
    index = graph.constant(swin.bias_index(part.window).astype(np.int64)[None])
    bias = graph.transpose(graph.add("Gather", graph.constant(table, "bias_table"), index, axis=0), 0, 3, 1, 2)
    if not part.shift:
        return bias
    mask = swin.attention_mask(padded, part.window, part.shift)[:, None] < 0
    ends = (graph.constant(np.float32(one)) for one in (swin.BLOCKED, 0))
    whole = graph.add("Add", bias, graph.add("Where", graph.constant(mask), *ends))
    return graph.add("Tile", whole, graph.batch(1, 1, 1))
