"""Files that run without this package."""

import dataclasses

from lraqvit_jax.options.records import option

TARGETS = ("avx2", "vnni", "arm", "qdq", "auto")
"""Processors whose integer kernels an ONNX file suits; `qdq` for other runtimes; `auto` is this machine's processor.
See `export.onnx`."""
OPSETS = (0, 17, 18, 19, 20, 21, 22, 23)
INPUTS = ("float32", "uint8")
WEIGHTS = ("float32", "float16", "bfloat16", "int8", "int4")
"""How an ONNX file stores the kernels of a float model; see `export.onnx.export`."""
ACTIVATIONS = ("int8", "uint16")
"""What a `qdq` file of static scales rounds activations to; see `export.onnx.export`."""
LAYOUTS = ("factors", "expanded")
"""What a safetensors file holds: the layers as they are, or timm's, multiplied out; see `export.safetensors`."""
MLIR = ("bytecode", "text")
"""StableHLO modules for one image, NAME.mlirbc and NAME.mlir; see `export.stablehlo`."""
LITERT = ("float32", "float16", "weight_only", "dynamic", "static", "integer")
"""Kinds of LiteRT files; see `export.litert`."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which models are exported, and for what."""

    artifacts: tuple[str, ...] = ("rb_lra_kd", "int8_wads")
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")  # of the StableHLO files
    onnx_target: str = option("avx2", choices=TARGETS)  # avx2 is right everywhere
    onnx_opset: int = option(0, choices=OPSETS)  # 0 is 20 of qdq, of others 23; older ones are for older runtimes
    onnx_input: str = option("float32", choices=INPUTS)  # uint8: pixels, normalized by the file
    onnx_weights: str = option("float32", choices=WEIGHTS)  # of float models alone
    onnx_activations: str = option("int8", choices=ACTIVATIONS)  # uint16: W8A16, of qdq files with static scales alone
    safetensors: str = option("factors", choices=LAYOUTS)  # expanded: what timm loads; float models alone
    mlir: tuple[str, ...] = option((), choices=MLIR)  # bytecode is what lasts for years
    # LiteRT (.tflite) files, any of LITERT, such as ('float16','dynamic'); they need requirements-litert.txt.
    litert: tuple[str, ...] = option((), choices=LITERT)


@dataclasses.dataclass(frozen=True)
class HubOptions:
    """A model as a repository of the Hugging Face Hub; see `stages.share`."""

    push: str = ""  # USER/NAME: the stage share makes WORKDIR/hub for it, and pushes that where a token is there
    private: bool = False  # of a repository that is new
    artifact: str = ""  # which; "" takes the one that is to be taken
    license: str = ""  # of the weights, as the Hub writes it (apache-2.0), where their own card does not say
