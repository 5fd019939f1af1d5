"""Where pretrained weights come from: `KIND:NAME`, each kind a module here with `read(name) -> Pretrained`."""

import importlib
import pkgutil
from typing import Any, NamedTuple

from flax import linen as nn

from lraqvit_jax import models
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.errors import UserError, nearest


class Pretrained(NamedTuple):
    """A dense model from elsewhere.

    Attributes:
        model: variant name.
        params: plain nested dict of host arrays.
        preprocess: of its images.
        num_classes: size of its logits.
        class_names: "" names where unknown.
        source: what it was loaded from, for the record.
        sha256: of the file, or of the parameters where they are no single file.
    """

    model: str
    params: dict[str, Any]
    preprocess: Preprocess
    num_classes: int
    class_names: list[str]
    source: str
    sha256: str


def load(source: str) -> tuple[nn.Module, dict[str, Any], Preprocess]:
    """Loads a model that can be used at once: `model.apply({"params": params}, preprocess(image)[None])`.

    Args and errors are those of `read`.
    """
    found = read(source)
    model = models.create(found.model, num_classes=found.num_classes, image_size=found.preprocess.size)
    return model, found.params, found.preprocess


def read(source: str) -> Pretrained:
    """Reads weights with all that is known of them.

    Args:
        source: "artifact:DIR", a finished model of another work directory (`WORKDIR/checkpoints/dense`).

    Raises:
        UserError: unknown kind, nothing there.
    """
    kinds = [module.name for module in pkgutil.iter_modules(__path__)]
    kind, colon, name = source.partition(":")
    if not colon or kind not in kinds:
        raise UserError(f"weights is {source!r}; write KIND:NAME, where KIND is one of these. {nearest(kind, kinds)}")
    return importlib.import_module(f"{__name__}.{kind}").read(name)
