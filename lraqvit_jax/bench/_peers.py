"""Other people's quantizers, each as its documentation says for a vision transformer on a CPU; a process for one.

    python -m lraqvit_jax.bench._peers NAME FOLDER

reads FOLDER/job.json, writes FOLDER/NAME.onnx or NAME.xml and, once it is done, FOLDER/NAME.json: {"file", "seconds",
"said"}. A process of its own, since such libraries change what they import, and some end theirs.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lraqvit_jax.runtimes import nncf as runtimes_nncf


class Job(NamedTuple):
    """What a peer is given.

    Attributes:
        model: float ONNX file, `images (batch, size, size, 3) -> logits`, attention spelled out.
        images: to calibrate on, (n, size, size, 3) float32, normalized.
        control: others, on which a peer may look at what it does.
        answers: of the float model to these.
        max_drop: points of such answers that may be lost.
        narrow: whether kernels of 8 bits overflow on this processor, so that 7 are advised.
        made: the path to write, without its ending.
    """

    model: pathlib.Path
    images: np.ndarray
    control: np.ndarray
    answers: np.ndarray
    max_drop: float
    narrow: bool
    made: pathlib.Path


class Peer(NamedTuple):
    """A quantizer of somebody else.

    Attributes:
        packages: what pip installs for it; the first one's version is told.
        call: what is called, for the table.
        runtime: of `lraqvit_jax.runtimes`, that runs what it makes.
        make: writes the file and says its path.
    """

    packages: tuple[str, ...]
    call: str
    runtime: str
    make: Callable[[Job], pathlib.Path]


def onnxruntime_static(job: Job, operators: list[str] | None = None) -> pathlib.Path:
    """Kernels with a scale for each output, activations uint8: what its page advises for x64."""
    from onnxruntime import quantization

    path = job.made.with_suffix(".onnx")
    quantization.quantize_static(
        _prepared(job),
        path,
        _Reader(job.images),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=True,
        reduce_range=job.narrow,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return path


def onnxruntime_static_matmul(job: Job) -> pathlib.Path:
    """The same of products alone: what is between them stays in float."""
    return onnxruntime_static(job, ["MatMul", "Gemm"])


def onnxruntime_dynamic(job: Job) -> pathlib.Path:
    from onnxruntime import quantization

    path = job.made.with_suffix(".onnx")
    quantization.quantize_dynamic(_prepared(job), path, per_channel=True, reduce_range=job.narrow)
    return path


class _Reader:
    """Calibration images, as ONNX Runtime's and Intel's quantizers ask for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self.rewind()

    def rewind(self) -> None:
        self._rest: Iterator[np.ndarray] = iter(self._images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._rest, None)
        return None if image is None else {"images": image[None]}

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest = iter(self._images[start_index:end_index])

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return ({"images": image[None]} for image in self._images)


def _prepared(job: Job) -> pathlib.Path:
    """The file with its shapes, as ONNX Runtime wants it before it quantizes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = job.made.with_suffix(".prepared.onnx")
    quant_pre_process(job.model, path, skip_symbolic_shape=importlib.util.find_spec("sympy") is None)
    return path


def neural_compressor_static(job: Job, **options: Any) -> pathlib.Path:
    """Intel Neural Compressor's ONNX part, which left it for a package of its own after 3.0."""
    from onnx_neural_compressor import quantization
    from onnx_neural_compressor.quantization import config
    from onnxruntime import quantization as ort

    path = job.made.with_suffix(".onnx")
    fields = {
        "calibration_data_reader": _Reader(job.images),
        "calibration_sampling_size": len(job.images),
        "quant_format": ort.QuantFormat.QDQ,
        "per_channel": True,
        "reduce_range": job.narrow,
    }
    quantization.quantize(_prepared(job), path, config.StaticQuantConfig(**fields, **options))
    return path


def neural_compressor_smooth(job: Job) -> pathlib.Path:
    """SmoothQuant, and products alone."""
    smooth = {"SmoothQuant": True, "SmoothQuantAlpha": 0.5}
    return neural_compressor_static(job, op_types_to_quantize=["MatMul", "Gemm"], extra_options=smooth)


def nncf_quantize(job: Job) -> pathlib.Path:
    path = job.made.with_suffix(".xml")
    runtimes_nncf.convert(job.model, path, job.images)
    return path


def nncf_accuracy_control(job: Job) -> pathlib.Path:
    """Layers go back to float until the answers are as often the float model's as `max_drop` says."""
    import nncf

    pairs = list(zip(job.control[:, None], job.answers.tolist(), strict=True))

    def answered(compiled: Any, some: Any) -> tuple[float, list[float]]:
        right = [float(np.argmax(compiled([image])[0]) == answer) for image, answer in some]
        return float(np.mean(right)), right

    made = nncf.quantize_with_accuracy_control(
        _float(job),
        calibration_dataset=nncf.Dataset(list(job.images[:, None])),
        validation_dataset=nncf.Dataset(pairs, lambda pair: pair[0]),
        validation_fn=answered,
        max_drop=job.max_drop / 100,
        drop_type=nncf.DropType.ABSOLUTE,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(job.images),
    )
    return _saved(made, job)


def nncf_weights_int8(job: Job) -> pathlib.Path:
    import nncf

    return _saved(nncf.compress_weights(_float(job), mode=nncf.CompressWeightsMode.INT8_ASYM), job)


def nncf_weights_int4(job: Job) -> pathlib.Path:
    """Groups of 64 inputs, which divide the widths of every ViT; its own 128 do not."""
    import nncf

    mode = nncf.CompressWeightsMode.INT4_ASYM
    return _saved(nncf.compress_weights(_float(job), mode=mode, group_size=64, all_layers=True), job)


def _float(job: Job) -> Any:
    return runtimes_nncf.read(job.model, job.images)


def _saved(made: Any, job: Job) -> pathlib.Path:
    import openvino

    path = job.made.with_suffix(".xml")
    openvino.save_model(made, path)
    return path


ORT, NNCF, INC = ("onnxruntime",), ("nncf", "openvino"), ("onnx-neural-compressor",)
PEERS = {
    "onnxruntime_static": Peer(ORT, "quantize_static, QDQ", "onnxruntime", onnxruntime_static),
    "onnxruntime_static_matmul": Peer(
        ORT, "quantize_static, QDQ, MatMul and Gemm alone", "onnxruntime", onnxruntime_static_matmul
    ),
    "onnxruntime_dynamic": Peer(ORT, "quantize_dynamic", "onnxruntime", onnxruntime_dynamic),
    "neural_compressor_static": Peer(INC, "StaticQuantConfig, QDQ", "onnxruntime", neural_compressor_static),
    "neural_compressor_smooth": Peer(
        INC, "SmoothQuant, QDQ, MatMul and Gemm alone", "onnxruntime", neural_compressor_smooth
    ),
    "nncf_quantize": Peer(NNCF, "quantize, TRANSFORMER", "openvino", nncf_quantize),
    "nncf_accuracy_control": Peer(NNCF, "quantize_with_accuracy_control", "openvino", nncf_accuracy_control),
    "nncf_weights_int8": Peer(NNCF, "compress_weights, INT8_ASYM", "openvino", nncf_weights_int8),
    "nncf_weights_int4": Peer(NNCF, "compress_weights, INT4_ASYM, groups of 64", "openvino", nncf_weights_int4),
}


def missing(peer: Peer) -> list[str]:
    """The packages that are not installed."""
    names = {package: package.replace("-", "_") for package in peer.packages}
    return [package for package, name in names.items() if importlib.util.find_spec(name) is None]


def version(peer: Peer) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in peer.packages)


def main(name: str, folder: pathlib.Path) -> None:
    limits = json.loads((folder / "job.json").read_text())
    images, control, answers = (np.load(folder / f"{part}.npy") for part in ("calibration", "control", "answers"))
    model = folder / "float.onnx"
    job = Job(model, images, control, answers, limits["max_drop"], limits["narrow"], folder / name)
    started = time.perf_counter()
    made = PEERS[name].make(job)
    result = {"file": made.name, "seconds": round(time.perf_counter() - started, 1)}
    (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
