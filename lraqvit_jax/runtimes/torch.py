"""PyTorch on the CPU, eager, from our safetensors files: float, and dynamic int8 on the int8 kernels of the file."""

import pathlib
from collections.abc import Callable
from typing import Any

from lraqvit_jax.runtimes import Job, refuse_options

PACKAGE = "torch"
SUFFIX = "safetensors"


def load(path: pathlib.Path, job: Job) -> Callable[[Any], Any]:
    import safetensors.torch
    import torch

    from lraqvit_jax.runtimes import _torch_models

    refuse_options(PACKAGE, path, job)
    torch.set_num_threads(job.threads)
    model = _torch_models.build(safetensors.torch.load_file(path), job.family, job.fields).eval()

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return run
