"""Files that run without this package."""

import dataclasses

from lraqvit_jax.options.records import option

TARGETS = ("avx2", "vnni", "arm", "qdq")
"""Processors whose integer kernels an ONNX file suits; see `export.onnx`."""
LAYOUTS = ("factors", "expanded")
"""What a safetensors file holds: the layers as they are, or timm's, multiplied out; see `export.safetensors`."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which models are exported, and for what."""

    artifacts: tuple[str, ...] = ("rb_lra_kd", "int8_wads")
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")  # of the StableHLO files
    onnx_target: str = option("avx2", choices=TARGETS)  # avx2 is right everywhere
    safetensors: str = option("factors", choices=LAYOUTS)  # expanded: what timm loads; float models alone
