"""PyTorch on the CPU, eager, from our safetensors files: float, and dynamic int8 on the int8 kernels of the file."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from lraqvit_jax.runtimes import Job, refuse_options

PACKAGE = "torch"
SUFFIX = "safetensors"


def model(path: str | os.PathLike) -> Any:
    """The model of a file that `export.safetensors` wrote, of any form that PyTorch's dynamic int8 or float has.

    Returns:
        a torch.nn.Module, in evaluation mode, from normalized images (batch, size, size, 3) to logits.

    Raises:
        ValueError: layers of another form.
    """
    import safetensors.torch

    from lraqvit_jax import models
    from lraqvit_jax.runtimes import _torch_models

    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    size = json.loads(metadata["preprocess"])["size"]
    tensors = safetensors.torch.load_file(path)
    return _torch_models.build(tensors, *models.architecture(metadata["model"], size)).eval()


def load(path: pathlib.Path, job: Job) -> Callable[[Any], Any]:
    import safetensors.torch
    import torch

    from lraqvit_jax.runtimes import _torch_models

    refuse_options(PACKAGE, path, job)
    torch.set_num_threads(job.threads)
    built = _torch_models.build(safetensors.torch.load_file(path), job.family, job.fields).eval()

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return built(torch.from_numpy(images)).numpy()

    return run
