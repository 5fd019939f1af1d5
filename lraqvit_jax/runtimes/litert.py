"""LiteRT on the CPU, from our .tflite files. They hold one image: a batch is as many calls. The option `variant` says
which file of a model, as in "litert?variant=dynamic" (`options.export.LITERT`); otherwise it is the plan's own."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lraqvit_jax.runtimes import Job, refuse_options

PACKAGE = "ai-edge-litert"
SUFFIX = "tflite"
KIND = "variant"
QUANTIZES = ("dynamic",)


def load(path: pathlib.Path, job: Job) -> Callable[[Any], Any]:
    from ai_edge_litert.interpreter import Interpreter

    refuse_options(PACKAGE, path, job)
    interpreter = Interpreter(model_path=str(path), num_threads=job.threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def call(image: Any) -> Any:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return lambda images: np.concatenate([call(image) for image in images])
