"""NNCF's own int8 of a float model, in OpenVINO: the peer that our integers are compared with. Options are OpenVINO's.

NNCF quantizes the float ONNX file, as its documentation has it for transformers, on noise: how long a product takes
does not depend on what the numbers are.
"""

import pathlib
import sys
from typing import Any

import numpy as np
from jaxtyping import Float

from lraqvit_jax.runtimes import openvino

PACKAGE = "openvino"
MAKER = "nncf"
SUFFIX = "nncf.xml"
QUANTIZES = ("",)
ENGINE = "openvino"
IMAGES = 8
"""Of noise, that it calibrates on."""
load = openvino.load


def convert(source: pathlib.Path, path: pathlib.Path, images: Float[np.ndarray, "n size size 3"]) -> None:
    """Writes OpenVINO's files, `path` and beside it a .bin, of a float ONNX file, calibrated on these images."""
    import nncf
    import openvino

    made = nncf.quantize(
        read(source, images),
        nncf.Dataset(list(images[:, None])),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    openvino.save_model(made, path)


def read(source: pathlib.Path, images: Float[np.ndarray, "n size size 3"]) -> Any:
    """A float ONNX file as OpenVINO has it, for one image of that size."""
    import openvino

    model = openvino.Core().read_model(source)
    model.reshape([1, *images.shape[1:]])
    return model


if __name__ == "__main__":  # In a process of its own: NNCF brings libraries that nothing else here needs.
    side = int(sys.argv[3])
    noise = np.random.default_rng(1).standard_normal((IMAGES, side, side, 3), np.float32)
    convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), noise)
