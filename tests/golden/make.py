"""Makes the golden files: python -m tests.golden.make (needs requirements-parity.txt).

A file holds PyTorch's logits and how to draw weights and images again; tests/unit/models/test_golden.py compares
ours with them wherever torch is not installed.
"""

import importlib.metadata
import json
import pathlib
from typing import Any

import numpy as np

from tests.golden import recipe
from tests.parity import pytorch
from tests.parity.pytorch import Case

CLASSES, IMAGES = 7, 2
CASES = {
    "vit_tiny_64": Case("vit_tiny_patch16_224", 64, stream=0.01),
    "deit_tiny_distilled_64": Case("deit_tiny_distilled_patch16_224", 64),
    "deit3_tiny_64": Case("deit3_small_patch16_224", 64, {"embed_dim": 192, "num_heads": 3}),
    "swin_tiny_112": Case("swin_tiny_patch4_window7_224", 112, stream=0.01),
    "swin_tiny_240_padded": Case("swin tiny", 240),
}


def golden(name: str) -> dict[str, Any]:
    """The logits of a case and its recipe as JSON."""
    case = CASES[name]
    seed, images = 10, recipe.images(IMAGES, case.size, seed=11)
    model = pytorch.build(case, CLASSES, seed)
    shapes = {key: list(value.shape) for key, value in model.named_parameters()}
    config = model.config.to_dict() if case.transformers else {}
    fields = {
        "source": str(case),
        "file": pytorch.file_name(case),
        "config": {key: config[key] for key in pytorch.CONFIG if key in config},
        "shapes": shapes,
        "seed": seed,
        "stream": case.stream,
        "images": {"count": IMAGES, "size": case.size, "seed": 11},
        "sum": recipe.total([*recipe.weights(shapes, seed, case.stream).values(), images]),
        "versions": {one: importlib.metadata.version(one) for one in ("torch", "timm", "transformers", "numpy")},
    }
    return {"logits": pytorch.logits(model, images), "recipe": json.dumps(fields)}


if __name__ == "__main__":
    for name in CASES:
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **golden(name))
        print(f"{path.name} {path.stat().st_size} bytes")
