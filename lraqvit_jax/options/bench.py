"""Grids and timings of `python -m lraqvit_jax.bench`."""

import dataclasses

from lraqvit_jax.options.quant import QUANTIZERS, Quantizer
from lraqvit_jax.options.records import named, option


@dataclasses.dataclass(frozen=True)
class LowRankGrid:
    """Of `bench lowrank`."""

    decompositions: tuple[str, ...] = ("svd", "wr", "asvd", "whitened", "aafm", "rrr", "kfac")
    methods: tuple[str, ...] = ("uniform_ratio", "logits")  # of choosing ranks, as plan.method
    budgets: tuple[float, ...] = option((0.9, 0.8, 0.65, 0.5), above=0)
    seeds: tuple[int, ...] = option((0,), low=0)
    runs: tuple[str, ...] = ()  # of `runs`, trained at every method, budget and seed


@dataclasses.dataclass(frozen=True)
class QuantGrid:
    """Of `bench quant`."""

    sources: tuple[str, ...] = ("dense",)  # float artefacts: names in WORKDIR/checkpoints, or paths
    widths: tuple[str, ...] = ("w8a8",)  # bits of kernels and of activations
    methods: dict[str, Quantizer] = named(Quantizer, QUANTIZERS)
    only: tuple[str, ...] = ()  # names of methods; () is all
    seeds: tuple[int, ...] = option((0, 1, 2), low=0)  # of the calibration draw


@dataclasses.dataclass(frozen=True)
class LatencyOptions:
    """Of `bench latency` and `bench profile`."""

    # Artefacts, names in WORKDIR/checkpoints or paths, or random weights in one of the forms below. The others are
    # compared with the first.
    models: tuple[str, ...] = (
        "random:dense",
        "random:low_rank",
        "random:int8_dense",
        "random:int8_low_rank",
        "random:int8_low_rank_7",  # kernels of 7 bits
        "random:int8_dense_dynamic",
        "random:int8_low_rank_dynamic",
        "random:int8_low_rank_dynamic_7",
    )
    # Modules of lraqvit_jax.runtimes. "?NAME=VALUE" after one sets an option of it, such as
    # onnxruntime?session.disable_prepacking=1 or, which file it reads, openvino?target=qdq
    runtimes: tuple[str, ...] = ("onnxruntime", "openvino", "torch", "jax")
    skip: tuple[str, ...] = ()  # patterns of "RUNTIME MODEL" that are not timed, such as "jax random:low_rank*"
    threads: tuple[int, ...] = option((1, 2), above=0)
    batches: tuple[int, ...] = option((1, 8), above=0)
    rounds: int = option(15, above=0)
    seconds: float = option(0.0, low=0)  # after which a setting has no more rounds, once it has 5; 0 is no limit


@dataclasses.dataclass(frozen=True)
class PeerOptions:
    """Of `bench peers`."""

    models: tuple[str, ...] = ()  # artefacts of the work directory; () is dense_int8 and what is to be taken
    peers: tuple[str, ...] = (  # those of bench/_peers.py
        "onnxruntime_static",
        "onnxruntime_static_matmul",
        "onnxruntime_dynamic",
        "neural_compressor_static",
        "neural_compressor_smooth",
        "nncf_quantize",
        "nncf_accuracy_control",
        "nncf_weights_int8",
        "nncf_weights_int4",
    )
    images: int = option(0, low=0)  # of data.eval, evenly spread; 0 is all
    control_images: int = option(300, above=0)  # on which a peer with accuracy control looks at its answers
    max_drop: float = option(1.0, low=0)  # points of answers like the dense model's that it may lose there
    minutes: float = option(60.0, above=0)  # that one may take; accuracy control goes through its layers one by one
    rounds: int = option(31, above=0)


@dataclasses.dataclass(frozen=True)
class ScalingOptions:
    """Of `bench scaling`."""

    models: tuple[str, ...] = ("deit_base", "vit_large")  # of the ViT family
    layouts: tuple[str, ...] = ("data", "fsdp", "data_fsdp", "mixed")  # see bench/scaling.py
    devices: tuple[int, ...] = (8, 64, 512)
    batch_per_device: int = option(128, above=0)
