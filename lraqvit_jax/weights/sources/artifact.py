"""The dense model of another work directory: `artifact:WORKDIR/checkpoints/dense`."""

import hashlib

import jax
import numpy as np

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.weights import Pretrained, artifacts


def read(name: str) -> Pretrained:
    """Reads a dense artefact; UserError if it is missing or already compressed."""
    artifact = artifacts.load_artifact(name)
    forms = {layer.form for layer in artifact.plan.values()}
    if forms != {"dense"}:
        raise UserError(f"The artefact {name} is already {', '.join(sorted(forms))}; weights takes a dense one.")
    params = artifacts.host(artifact.params)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    meta = artifact.meta
    return Pretrained(
        meta["model"],
        params,
        artifact.preprocess,
        meta["num_classes"],
        meta["class_names"],
        f"artifact:{name}",
        digest.hexdigest(),
    )
