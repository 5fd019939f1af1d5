"""LiteRT (.tflite) without TensorFlow: JAX lowers the model to StableHLO, litert-converter makes the file of it, and
litert-quantizer its integers.

`images (1, size, size, 3) float32 -> logits (1, classes) float32`, signature "serving_default", normalized as the
metadata say; of a model without a head, `features (1, width)`. One image at a time: a file for phones. How the linear
layers are computed is the variant:

    float32      a float model as it is
    float16      its kernels stored in half the bytes, computed in float32
    weight_only  kernels int8, one scale for each output channel; products in float32
    dynamic      kernels likewise; activations int8, each row of them on a grid that the runtime finds for it
    static       kernels and input scales of a model that is quantized with static scales; outputs int8 too, as LiteRT's
                 kernel has them, on the range that they have on some images
    integer      a quantized model as it is: int8 x int8 -> int32, to the last rounding. LiteRT's kernel for it is plain
                 code, several times slower than its float one: to compare with, not to ship

weight_only, dynamic and static keep the integers of a model that is quantized already. In a dynamic file the grid of a
row spans its whole range: shares (`clip`) and centres of the plan are of no account there. An exact GELU becomes
LiteRT's own operator. Identity blocks of a float model are multiplied like the rest of their kernels: what copies
channels in LiteRT takes longer than the products that it saves (a fifth of a dynamic ViT-Tiny), and the file grows by
some percent.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lraqvit_jax.base import files, trees
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.base.version import VERSION
from lraqvit_jax.export.contract import contract
from lraqvit_jax.export.stablehlo import without_locations
from lraqvit_jax.options.export import LITERT
from lraqvit_jax.plan import basis
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.plan.records import LayerPlan, Plan
from lraqvit_jax.weights import artifacts

PACKAGES = ("litert_converter", "litert_quantizer", "ai_edge_litert")
METADATA = "lraqvit_jax"
"""Name of the entry of the file's metadata; its buffer is JSON."""
SIGNATURE = "serving_default"
CALIBRATION = 32
"""Images at most on which the outputs of a static file are seen."""
ENDS = {"min": np.float32(-128), "max": np.float32(127)}
"""Of the grid on which a static file rounds inputs that are divided by their scales: scale 1, zero point 0."""


def missing() -> str:
    """Which packages are not installed, as a sentence; "" if none."""
    absent = [name.replace("_", "-") for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    return f"LiteRT files need {', '.join(absent)}; pip install -r requirements-litert.txt."


def obstacle(plan: Plan, variant: str) -> str:
    """Why a model of this plan has no such file, as the rest of a sentence; "" if it has one.

    Raises:
        UserError: no such variant.
    """
    if variant not in LITERT:
        raise UserError(f"There is no LiteRT variant {variant!r}; {nearest(variant, LITERT)}")
    quantized = {path: layer for path, layer in plan.items() if layer.form == "quantized"}
    if not quantized and variant in ("static", "integer"):
        return "is a float model and has no scales of activations; take 'dynamic', or quantize it first."
    if quantized and variant in ("float32", "float16"):
        return f"has integers, as in {next(iter(quantized))}; take 'weight_only', or the float model it was made of."
    refused = ((path, reason) for path, layer in plan.items() if (reason := _odd(layer, variant)))
    path, reason = next(refused, ("", ""))
    if not path:
        return ""
    return f"has {reason} in {path}, which no LiteRT file of that kind holds; use its ONNX or StableHLO file."


def usual(plan: Plan) -> str:
    """The variant that computes what the plan says, as far as LiteRT's kernels do."""
    scales = {layer.granularity for layer in plan.values() if layer.form == "quantized"}
    if not scales:
        return "float32"
    return "dynamic" if "per_token_dynamic" in scales else "static"


def _odd(layer: LayerPlan, variant: str) -> str:
    """What of a layer the converter, the quantizer or the runtime cannot do."""
    integer, dynamic = variant == "integer", layer.granularity == "per_token_dynamic"
    if layer.attention != "float" and not integer:
        return f"{layer.attention} attention products"
    if layer.form != "quantized":
        return ""
    if layer.group or layer.kernel_bits not in ((7, 8) if integer else (8,)):
        return f"kernels of {layer.kernel_bits} bits{' in groups' if layer.group else ''}"
    if integer and layer.asymmetric:
        return "centres of activations"
    if variant in ("static", "dynamic") and layer.bits != 8:
        return f"activations of {layer.bits} bits"
    return {("dynamic", False): "static scales", ("static", True): "dynamic scales"}.get((variant, dynamic), "")


def export(
    artifact: artifacts.Artifact,
    path: pathlib.Path,
    variant: str = "float32",
    images: Float[np.ndarray, "images size size 3"] | None = None,
) -> None:
    """Writes a .tflite file.

    Args:
        artifact: of any form.
        path: of the file.
        variant: one of `options.export.LITERT`.
        images: normalized; what a static file calibrates its outputs on, CALIBRATION of them at most.

    Raises:
        UserError: no such variant; packages that are not installed; a model that has no such file (`obstacle`); a
            static file without images.
    """
    if reason := obstacle(artifact.plan, variant):
        raise UserError(f"{artifact.name} {reason}")
    if reason := missing():
        raise UserError(reason)
    if variant == "static" and images is None:
        raise UserError("A static LiteRT file calibrates its outputs on images; give some that are prepared.")
    artifact = _without_blocks(artifact)
    with _quiet():
        made = _quantize(convert(_lowered(artifact, variant), _output(artifact)), artifact, variant, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, _with_metadata(made, _said(artifact, variant)))


def _without_blocks(artifact: artifacts.Artifact) -> artifacts.Artifact:
    """The same model with plain pairs and kernels in place of pivoted float ones."""
    plan, params, changed = dict(artifact.plan), artifacts.host(artifact.params), {}
    for info in artifact.spec.layers:
        layer = plan[info.path]
        if layer.form == "pivoted":
            weights = trees.get(params, info.path)
            others = {name: value for name, value in weights.items() if name not in ("kernel", "u", "v", "basis")}
            changed[info.path] = others | basis.plain(weights, layer.basis, info.features_in)
            plan[info.path] = dataclasses.replace(layer, form="low_rank" if layer.rank else "dense", basis="")
    meta = {**artifact.meta, "plan": to_json(plan)}
    return dataclasses.replace(artifact, params=trees.replace(params, changed), meta=meta) if changed else artifact


def load(path: pathlib.Path, threads: int = 1) -> Callable[[Any], np.ndarray]:
    """Reads a file into LiteRT on the CPU, as a function from images (any number) to logits."""
    with _quiet():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: Any) -> np.ndarray:
        outputs = []
        for image in np.asarray(images, np.float32):
            interpreter.set_tensor(source["index"], image[None])
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(target["index"])[0])
        return np.stack(outputs)

    return run


def metadata(path: pathlib.Path) -> dict[str, Any]:
    """What a file says of itself: variant, model, plan, and `export.contract`.

    Raises:
        UserError: the file is none of this package's.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] == b"TFL3":
        model = schema.Model.GetRootAs(content)
        for index in range(model.MetadataLength()):
            entry = model.Metadata(index)
            if entry.Name() == METADATA.encode():
                return json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    raise UserError(f"{path} does not say what it is; name a .tflite file that lraqvit_jax has exported.")


def _said(artifact: artifacts.Artifact, variant: str) -> dict[str, Any]:
    meta = artifact.meta
    said = {"version": VERSION, "variant": variant, "model": meta["model"], "num_classes": meta["num_classes"]}
    said |= {**contract(artifact), "plan": meta["plan"]}
    for end in ("input", "output"):
        said[end] = {**said[end], "shape": [1, *said[end]["shape"][1:]]}
    return said


def _output(artifact: artifacts.Artifact) -> str:
    return contract(artifact)["output"]["name"]


def _lowered(artifact: artifacts.Artifact, variant: str) -> str:
    """The StableHLO of the model for one image, its parameters inside.

    Static scales are in it where the variant is static or integer. The converter takes a product of integers by a
    constant for one with a fully connected kernel, which there is not for them: behind a barrier they are no constants
    to it.
    """
    size, params, integer = artifact.preprocess.size, artifacts.host(artifact.params), variant == "integer"
    plan = (
        artifact.plan
        if variant in ("static", "integer")
        else {
            path: dataclasses.replace(layer, granularity="per_token_dynamic") if layer.form == "quantized" else layer
            for path, layer in artifact.plan.items()
        }
    )
    meta = {**artifact.meta, "plan": to_json(plan)}
    built = artifacts.build(meta, arithmetic="integer" if integer else "unrounded")

    def hidden(leaf: np.ndarray) -> Any:
        kernel = leaf.dtype in (np.int8, np.uint8)
        return jax.lax.optimization_barrier(jnp.asarray(leaf)) if kernel and integer else leaf

    def model(images: Any) -> Any:
        return built.apply({"params": jax.tree.map(hidden, params)}, images)

    with without_locations():
        lowered = jax.jit(model).lower(jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
        return lowered.as_text(debug_info=True)


def convert(text: str, output: str = "logits") -> bytes:
    """StableHLO in text, of a function `main` with one input, as a .tflite file."""
    import litert_converter.mlir  # noqa: F401  finds the libraries of the next two
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter

    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        module = ir.Module.parse(text)
        for erf in [op for op in _operations(module.operation) if op.name == "chlo.erf"]:
            _fuse_gelu(erf)
        converter.set_signature(module.operation, SIGNATURE, ["images"], [output])
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), converter.ConvertToTFLConfig())
        return converter.export_flatbuffer_to_bytes(module.operation)


def _operations(operation: Any) -> Iterator[Any]:
    """Every operation inside one."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _operations(inner.operation)


def _fuse_gelu(erf: Any) -> None:
    """Puts LiteRT's operator in place of `0.5 x (1 + erf(x sqrt(0.5)))`, as `models.vit.gelu` writes it; any other use
    of erf stays. The converter would make thirty operators of each."""
    from litert_converter.mlir import ir

    scaled, plus = erf.operands[0].owner, _user(erf)
    product = _user(plus) if plus is not None else None
    if product is None or [op.name for op in (scaled, plus, product)] != [f"stablehlo.{op}" for op in GELU]:
        return
    x, half = scaled.operands[0], next(value.owner for value in product.operands if value.owner != plus)
    if half.name != "stablehlo.multiply" or x not in list(half.operands):
        return
    with ir.InsertionPoint(product), product.location:
        exact = {"approximate": ir.BoolAttr.get(False)}
        made = ir.Operation.create("tfl.gelu", results=[x.type], operands=[x], attributes=exact)
    product.results[0].replace_all_uses_with(made.results[0])
    for operation in (product, plus, erf):
        operation.erase()


GELU = ("multiply", "add", "multiply")


def _user(operation: Any) -> Any:
    """The only operation that reads the result; None where there are more."""
    users = [use.owner for use in operation.results[0].uses]
    return users[0] if len(users) == 1 else None


def _quantize(made: bytes, artifact: artifacts.Artifact, variant: str, images: Any) -> bytes:
    """A float file with the kernels of its linear layers as the variant says."""
    if variant in ("float32", "integer"):
        return made
    from litert_quantizer import algorithm_manager, qtyping, quantizer

    made = _flat_biases(made) if variant == "static" else made
    work = quantizer.Quantizer(made)
    connected, where = qtyping.TFLOperationName.FULLY_CONNECTED, _scope(artifact)
    if variant == "float16":
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(weight_tensor_config=half, explicit_dequantize=True)
        algorithm = algorithm_manager.AlgorithmName.FLOAT_CASTING
        work.update_quantization_recipe(where, connected, config, algorithm_key=algorithm)
    elif variant == "static":
        work.add_static_config(where, connected, activation_num_bits=8, weight_num_bits=8)
    else:
        add = work.add_weight_only_config if variant == "weight_only" else work.add_dynamic_config
        add(where, connected, num_bits=8)
    ranges = _ranges(made, where, images) if variant == "static" else None
    result = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model or b"")


def _scope(artifact: artifacts.Artifact) -> str:
    """A pattern for the names of the products of the quantized layers, or, in a float model, of all. Between the parts
    of a path Flax puts methods, as in "layers_1/layers_1.merge/downsample"."""
    method = r"/(?:\w+\.\w+/)*"
    paths = [path.split("/") for path, layer in artifact.plan.items() if layer.form == "quantized"]
    patterns = [method.join(map(re.escape, parts)) for parts in paths]
    return f".*/(?:{'|'.join(patterns)})/.*" if patterns else ".*"


def _ranges(made: bytes, where: str, images: Any) -> dict[str, Any]:
    """Ranges of tensors by name, of the products that the pattern takes: an input has the model's grid, an output the
    ends of what it is on the images."""
    from ai_edge_litert.interpreter import Interpreter

    products = [(source, target) for source, target in _products(made) if re.search(where, target)]
    interpreter = Interpreter(model_content=made, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (first,) = interpreter.get_input_details()
    index = {tensor["name"]: tensor["index"] for tensor in interpreter.get_tensor_details()}
    ends: dict[str, list[Any]] = {target: [] for _, target in products}
    for image in np.asarray(images, np.float32)[:CALIBRATION]:
        interpreter.set_tensor(first["index"], image[None])
        interpreter.invoke()
        for name, seen in ends.items():
            values = interpreter.get_tensor(index[name])
            seen += [values.min(), values.max()]
    ranges = {name: {"min": min(seen), "max": max(seen)} for name, seen in ends.items()}
    return ranges | {source: dict(ENDS) for source, _ in products}


def _products(made: bytes) -> list[tuple[str, str]]:
    """Names of the input and output of every fully connected operator."""
    from ai_edge_litert import schema_py_generated as schema

    graph, connected = schema.Model.GetRootAs(made), schema.BuiltinOperator.FULLY_CONNECTED
    (body,) = (graph.Subgraphs(index) for index in range(graph.SubgraphsLength()))
    names = [body.Tensors(index).Name().decode() for index in range(body.TensorsLength())]
    operators = [body.Operators(index) for index in range(body.OperatorsLength())]
    return [
        (names[one.Inputs(0)], names[one.Outputs(0)])
        for one in operators
        if graph.OperatorCodes(one.OpcodeIndex()).BuiltinCode() == connected
    ]


def _flat_biases(made: bytes) -> bytes:
    """The file with the biases of its products (n,), where the converter leaves some (1, n): the scales of integer ones
    go by their first axis."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(made)
    (graph,) = model.subgraphs
    for operator in graph.operators:
        connected = model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED
        if connected and len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            bias = graph.tensors[operator.inputs[2]]
            bias.shape = np.asarray([np.prod(bias.shape)], np.int32)
    return _packed(model, len(made))


def _packed(model: Any, size: int) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _with_metadata(made: bytes, said: dict[str, Any]) -> bytes:
    """The file with one entry more in its metadata. Arrays that the quantizer has put behind the flatbuffer are in it
    again, where every runtime finds them."""
    from ai_edge_litert import schema_py_generated as schema

    model, buffer, entry = schema.ModelT.InitFromPackedBuf(made), schema.BufferT(), schema.MetadataT()
    for outside in (one for one in model.buffers if one.offset > 1):
        outside.data = np.frombuffer(made, np.uint8, outside.size, outside.offset)
        outside.offset = outside.size = 0
    buffer.data = np.frombuffer(json.dumps(said).encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return _packed(model, len(made))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of the quantizer, and what it warns of its own calls."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
