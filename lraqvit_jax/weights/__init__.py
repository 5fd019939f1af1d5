"""Where pretrained weights come from: `KIND:NAME`, each kind a module here with `read(name) -> Pretrained`."""

import dataclasses
import importlib
import math
import pathlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from lraqvit_jax import models
from lraqvit_jax.base import files as base_files
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError, nearest, short
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import precision, sharding
from lraqvit_jax.weights import artifacts, hub, sources, tensors


class Pretrained(NamedTuple):
    """A dense model from elsewhere.

    Attributes:
        model: variant name.
        params: plain nested dict of host arrays.
        preprocess: of its images.
        num_classes: size of its logits, 0 where it gives features. Of a source also 0 where there is no head and one of
            zeros stands for it, in the parameters.
        class_names: in the order of the logits, as the card says; none at all where it does not.
        source: what it was loaded from, for the record.
        sha256: of the file, or of the parameters where they are no single file.
        grid: side of the images that the position embedding is for, where the source resamples it for those that
            `preprocess` makes; 0 is the same.
        resampling: how that is done; see `resample`.
    """

    model: str
    params: dict[str, Any]
    preprocess: Preprocess
    num_classes: int
    class_names: list[str]
    source: str
    sha256: str
    grid: int = 0
    resampling: str = "antialiased"


@precision.usual()
def load(source: str, *, num_classes: int = 0, image_size: int = 0) -> tuple[nn.Module, dict[str, Any], Preprocess]:
    """Loads a model that can be used at once: `model.apply({"params": params}, preprocess(image)[None])`.

    Args and errors are those of `read`.
    """
    pretrained = read(source, num_classes=num_classes, image_size=image_size)
    model = models.create(pretrained.model, num_classes=pretrained.num_classes, image_size=pretrained.preprocess.size)
    return model, pretrained.params, pretrained.preprocess


@precision.usual()
def read(source: str, *, num_classes: int = 0, image_size: int = 0) -> Pretrained:
    """Reads weights with all that is known of them.

    Args:
        source: "timm:PATH_OR_HUB_ID", "huggingface:DIR_OR_HUB_ID", "big_vision:FILE.npz", or
            "artifact:WORKDIR/checkpoints/dense".
        num_classes: 0 keeps the head, or a model that has none and gives features; another number than the head's puts
            a new one, all zero, in its place, or where there was none.
        image_size: 0 keeps the size; another resamples the position embedding, or the position bias of windows that
            the feature map has become too small for.

    Raises:
        UserError: unknown kind, nothing there, or weights that do not fit their model.
    """
    kinds = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    kind, colon, name = source.partition(":")
    if not colon or kind not in kinds:
        raise UserError(f"weights is {source!r}; write KIND:NAME, where KIND is one of these. {nearest(kind, kinds)}")
    pretrained = importlib.import_module(f"{sources.__name__}.{kind}").read(name)
    size = image_size or pretrained.preprocess.size
    if size != (pretrained.grid or pretrained.preprocess.size):
        pretrained = _resized(pretrained, size)
    if num_classes and num_classes != pretrained.num_classes:
        pretrained = _new_head(pretrained, num_classes)
    _check_head(pretrained, source)
    return pretrained


def local(source: str) -> bool:
    """Whether weights are files of this machine; a hub id may have to be fetched."""
    kind, _, name = source.partition(":")
    return kind in ("artifact", "big_vision") or not hub.is_id(name)


def files(source: str) -> list[pathlib.Path]:
    """The files that `read` reads of local weights, whether they are there or not; see `local`."""
    kind, _, name = source.partition(":")
    if kind == "artifact":
        return [path for path in [artifacts.meta_file(base_files.locate(name))] if path]
    path = base_files.locate(name)
    if kind != "big_vision":
        path = hub.find(name, ("model.safetensors", tensors.INDEX), pickles=True)
    shards = tensors.shards(path) if path.name == tensors.INDEX and path.exists() else []
    return [path, *shards, path.parent / "config.json", path.parent / "preprocessor_config.json"]


def licence(source: str) -> str:
    """The licence that the card of weights names, in config.json or at the head of README.md; "" where none does."""
    if not source or source.startswith("artifact:"):
        return ""
    folder = files(source)[0].parent if local(source) else hub.folder_of(source.partition(":")[2])
    if folder is None:
        return ""
    said: list[Any] = []
    if (folder / "config.json").is_file():
        fields = base_files.json_object(folder / "config.json", "mend it or take it away")
        nested = fields.get("pretrained_cfg")
        said += [fields.get("license"), nested.get("license") if isinstance(nested, dict) else None]
    if (folder / "README.md").is_file():
        head = base_files.text(folder / "README.md", "mend it or take it away").split("---")
        said += re.findall(r"^license: *(\S.*)$", head[1] if len(head) > 2 else "", re.MULTILINE)
    return next((short(one) for one in said if isinstance(one, str) and one), "")


def _check_head(pretrained: Pretrained, source: str) -> None:
    if not pretrained.num_classes and any(name.startswith("head") for name in pretrained.params):
        raise UserError(
            f"{source} is a backbone without a head (head.weight); set num_classes to the classes that a new one is to "
            'have, all zero, and train it with teacher.steps, or, for its features, write {"num_classes": 0} into a '
            "config.json beside it."
        )
    if pretrained.num_classes == 1:
        raise UserError(
            f"{source} has one logit, which is a number or a yes or no and of which a softmax makes 100 %; set "
            "num_classes to 2 or more for a new head."
        )


def _resized(pretrained: Pretrained, image_size: int) -> Pretrained:
    base, changes = models.split(pretrained.model)
    name = models.renamed(base, {field: value for field, value in changes.items() if field != "spare"})
    head = pretrained.num_classes or any(name.startswith("head") for name in pretrained.params)
    model = models.create(name, num_classes=int(head), image_size=image_size)
    preprocess = dataclasses.replace(pretrained.preprocess, size=image_size)
    params = resize(pretrained.params, model, image_size, pretrained.resampling)
    return pretrained._replace(model=name, params=params, preprocess=preprocess, grid=0)


def resize(
    params: Mapping[str, Any], model: nn.Module, image_size: int, resampling: str = "antialiased"
) -> dict[str, Any]:
    """Resamples what depends on the image size: position embeddings, position biases of windows that shrink.

    Args:
        params: of the same model at another size.
        model: at the new size.
        image_size: the new size.
        resampling: see `resample`.
    """
    abstract = trees.flatten(sharding.abstract_params(model, image_size, sharding.one_device()))
    flat = trees.flatten(params)
    for path, leaf in abstract.items():
        value = np.asarray(flat[path])
        if value.shape != leaf.shape:
            table = value[None] if value.ndim == 2 else value  # a position bias table is all grid and no class token
            flat[path] = resample(table, leaf.shape[-2], resampling).reshape(leaf.shape)
    return trees.nest(flat)


def resample(
    embedding: Float[np.ndarray, "1 old dim"], cells: int, resampling: str = "antialiased"
) -> Float[np.ndarray, "1 new dim"]:
    """Resamples the square part of a position embedding to the largest square within `cells`; class tokens stay.

    Bicubic: "antialiased", as timm does it, or not, "bicubic", as PyTorch's `interpolate` and transformers do.
    """
    old, new = math.isqrt(embedding.shape[1]), math.isqrt(cells)
    prefix = embedding.shape[1] - old**2
    grid = embedding[0, prefix:].reshape(old, old, -1)
    if resampling == "bicubic":
        weights = _bicubic(old, new)
        scaled: Any = np.einsum("ra,cb,abd->rcd", weights, weights, grid.astype(np.float64)).astype(np.float32)
    else:
        scaled = jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic", antialias=True)
    return np.concatenate([embedding[:, :prefix], np.asarray(scaled).reshape(1, new**2, -1)], axis=1)


def _bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What each of `new` samples takes of each of `old`: Keys' cubic of a = -3/4, edges repeated, as PyTorch has it."""
    a, place = -0.75, (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        index = np.floor(place).astype(int) + step
        x = np.abs(place - index)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), np.clip(index, 0, old - 1)), np.where(x <= 1, near, far))
    return weights


def _new_head(pretrained: Pretrained, num_classes: int) -> Pretrained:
    size = pretrained.preprocess.size
    model = models.create(pretrained.model, num_classes=num_classes, image_size=size)
    abstract = sharding.abstract_params(model, size, sharding.one_device())
    heads = {name: value for name, value in abstract.items() if name.startswith("head")}
    params = pretrained.params | jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), heads)
    return pretrained._replace(params=params, num_classes=num_classes, class_names=[])
