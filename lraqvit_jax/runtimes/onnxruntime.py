"""ONNX Runtime on the CPU. Options are attributes of its SessionOptions (0 or 1), or its session entries; `target` is
that of the file, one of `options.export.TARGETS`, otherwise it is `export.onnx_target`."""

import pathlib
from collections.abc import Callable
from typing import Any

from lraqvit_jax.runtimes import Job

PACKAGE = "onnxruntime"
SUFFIX = "onnx"
KIND = "target"


def load(path: pathlib.Path, job: Job) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    # Threads that wait for the next call would take time from the other models of a round.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in job.options.items():
        if hasattr(options, name):
            setattr(options, name, bool(int(value)))
        else:
            options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]
