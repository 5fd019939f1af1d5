"""LiteRT on the CPU, from our .tflite files. They hold one image: a batch is as many calls. The option `variant` says
which file of a model, as in "litert?variant=dynamic" (`options.export.LITERT`); otherwise it is the plan's own."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lraqvit_jax.runtimes import Job, refuse_options

PACKAGE = "ai-edge-litert"
SUFFIX = "tflite"


def suffix(options: Mapping[str, str]) -> str:
    """Of the file that is read with these options."""
    return f"{options['variant']}.{SUFFIX}" if "variant" in options else SUFFIX


def load(path: pathlib.Path, job: Job) -> Callable[[Any], Any]:
    from ai_edge_litert.interpreter import Interpreter

    others = {name: value for name, value in job.options.items() if name != "variant"}
    refuse_options(PACKAGE, path, job._replace(options=others))
    interpreter = Interpreter(model_path=str(path), num_threads=job.threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def call(image: Any) -> Any:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return lambda images: np.concatenate([call(image) for image in images])
