"""What an exported file takes and gives: the record that stands in each file and in export/NAME.json."""

from typing import Any

from lraqvit_jax.weights.artifacts import Artifact

VALUES = {
    "float32": "(pixel / 255 - mean) / std, pixels from 0 to 255",
    "uint8": "pixels from 0 to 255, which the file normalizes",
}
"""By type of the images, what these are."""


def contract(artifact: Artifact, images: str = "float32") -> dict[str, Any]:
    """The record, as JSON has it, of a file that reads images of that type, one of VALUES.

    `input`: name, shape, type, layout and colours of the images, and how their values follow from pixels of 8 bits that
    are prepared as `preprocess` says. `output`: likewise; class i is `class_names[i]`, or a number where there are no
    names. A model without a head gives features.
    """
    size, classes, model = artifact.preprocess.size, artifact.meta["num_classes"], artifact.model
    output = {"name": "logits" if classes else "features", "shape": ["batch", classes or model.width]}
    return {
        "input": {
            "name": "images",
            "shape": ["batch", size, size, 3],
            "dtype": images,
            "layout": "NHWC",
            "colours": "RGB",
            "values": VALUES[images],
        },
        "output": {**output, "dtype": "float32", "softmax": False},
        "preprocess": artifact.preprocess.to_json(),
        "class_names": artifact.meta["class_names"],
    }
