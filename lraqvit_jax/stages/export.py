"""Stage export: StableHLO files, each compared with its model on real images, and safetensors files for PyTorch.

Writes `export/`.
"""

import json

import jax
import numpy as np

from lraqvit_jax import checkpoint, metrics
from lraqvit_jax.errors import UserError
from lraqvit_jax.export import safetensors, stablehlo
from lraqvit_jax.workspace import Workspace

IMAGES = 200


def run(ws: Workspace) -> None:
    if jax.process_index():
        return
    options, folder = ws.config["export"], ws.directory / "export"
    batches, _ = ws.calibration(min(IMAGES, len(ws.source("calibration"))))
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    for name in options["artifacts"]:
        if all((folder / f"{name}.{suffix}").exists() for suffix in ("json", "safetensors")):
            continue
        if not ws.has(name):
            raise UserError(
                f"export.artifacts names {name!r}, which {ws.directory} does not have; run its stage first."
            )
        found = checkpoint.load_artifact(ws.path(name))
        path, tensors = folder / f"{name}.stablehlo", folder / f"{name}.safetensors"
        stablehlo.export(found.model, found.params, found.preprocess.size, options["platforms"], path)
        safetensors.save(found, tensors)
        agreement, difference = stablehlo.difference(path, found.model, found.params, images)
        card = {
            "name": name,
            "input": ["batch", found.preprocess.size, found.preprocess.size, 3],
            "preprocess": found.preprocess.to_json(),
            "class_names": ws.class_names,
            "platforms": list(options["platforms"]),
            "bytes": path.stat().st_size,
            "safetensors_bytes": tensors.stat().st_size,
            "checked_images": len(images),
            "top1_agreement": agreement,
            "max_relative_difference": difference,
        }
        metrics.write_atomically(folder / f"{name}.json", json.dumps(card, indent=1) + "\n")
        print(
            f"export/{name}.stablehlo: {card['bytes'] / 1e6:.3f} MB, top-1 equal to the model's on "
            f"{agreement:.1%} of {len(images)} images, logits within {difference:.1e}; "
            f"{name}.safetensors: {card['safetensors_bytes'] / 1e6:.3f} MB",
            flush=True,
        )
