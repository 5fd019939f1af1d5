"""OpenVINO on the CPU, from our ONNX files. Options are its properties, such as INFERENCE_PRECISION_HINT; `target` is
that of the file, one of `options.export.TARGETS`, otherwise it is `export.onnx_target`. It sees integers in "qdq"
alone."""

import pathlib
from collections.abc import Callable
from typing import Any

from lraqvit_jax.runtimes import Job

PACKAGE = "openvino"
SUFFIX = "onnx"
KIND = "target"


def load(path: pathlib.Path, job: Job) -> Callable[[Any], Any]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([job.batch, job.size, job.size, 3])
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads, **job.options}
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    return lambda images: request.infer([images])[0]
