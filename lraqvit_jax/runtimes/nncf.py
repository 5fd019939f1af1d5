"""NNCF's own int8 of a float model, in OpenVINO: the peer that our integers are compared with. Options are OpenVINO's.

NNCF quantizes the float ONNX file, as its documentation has it for transformers, on noise: how long a product takes
does not depend on what the numbers are.
"""

import pathlib
import sys

import numpy as np

from lraqvit_jax.runtimes import openvino

PACKAGE = "openvino"
MAKER = "nncf"
SUFFIX = "nncf.xml"
QUANTIZES = ("",)
ENGINE = "openvino"
IMAGES = 8
"""Of noise, that it calibrates on."""
load = openvino.load


def convert(source: pathlib.Path, path: pathlib.Path, size: int) -> None:
    """Writes OpenVINO's files, `path` and beside it a .bin, of a float ONNX file for images of that size."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    model.reshape([1, size, size, 3])
    images = np.random.default_rng(1).standard_normal((IMAGES, 1, size, size, 3), np.float32)
    made = nncf.quantize(model, nncf.Dataset(list(images)), model_type=nncf.ModelType.TRANSFORMER, subset_size=IMAGES)
    openvino.save_model(made, path)


if __name__ == "__main__":  # In a process of its own: NNCF brings libraries that nothing else here needs.
    convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]))
