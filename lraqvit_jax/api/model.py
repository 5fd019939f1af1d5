"""A model that is ready to use: it knows its plan, how its images are prepared, and what its classes are called."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from flax import linen as nn
from jaxtyping import Float

from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.config import restored
from lraqvit_jax.data import matching, sources
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.sources import memory
from lraqvit_jax.devices import precision, sharding
from lraqvit_jax.run import results
from lraqvit_jax.tasks import classification as evaluate
from lraqvit_jax.weights import artifacts

Images = memory.Item | np.ndarray | Iterable[memory.Item | np.ndarray]
"""One image or several: PIL images, paths, arrays of uint8 (height, width) or (height, width, channels) with 1, 3 or 4
channels, or arrays of floats (size, size, 3) that are normalized already. An array of several has an axis more, and
channels."""


@dataclasses.dataclass(frozen=True)
class Model(artifacts.Artifact):
    """An artefact on one device, with what one does with a model. `load` and `compress` make it.

    Example:
        >>> model = lraqvit_jax.load("DIR")
        >>> model.predict("photo.jpg")
        [[('tabby, tabby cat', 0.61), ('tiger cat', 0.22), ...]]

    Attributes:
        model: Flax module; `model.apply({"params": params}, images)` gives logits.
        params: plain nested dict of arrays.
        preprocess: turns a PIL image into the array that the model reads.
        meta: name, model, plan, preprocess, class_names, config, parent, versions, notes.
    """

    @property
    def class_names(self) -> list[str]:
        """In the order of the logits; empty where they are not known."""
        return self.meta["class_names"] or []

    @property
    def size_mb(self) -> float:
        """Bytes of all parameters as they are stored, in 10⁶."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params)) / 1e6

    @precision.usual()
    def logits(self, images: Images, batch_size: int = 32) -> Float[np.ndarray, "images classes"]:
        """Logits, float32.

        Args:
            images: one or several; see `Images`.
            batch_size: how many go through the model at once, at most.

        Raises:
            UserError: an image that cannot be read, an array that is none.
        """
        items = memory.items(images)
        size = min(batch_size, 1 << (len(items) - 1).bit_length())  # few different shapes to compile for
        parts = []
        for start in console.progress(range(0, len(items), size), "predict", "batch"):
            some = [self._prepared(item, start + row) for row, item in enumerate(items[start : start + size])]
            batch = np.stack(some + [np.zeros_like(some[0])] * (size - len(some)))
            parts.append(np.asarray(_apply(self.model)(self.params, batch))[: len(some)])
        return np.concatenate(parts)

    def predict(self, images: Images, top: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each image, best first: their names, or numbers as text, and probabilities.

        Args:
            images: one or several; see `Images`.
            top: how many classes.

        Raises:
            UserError: as `logits`.
        """
        if top < 1:
            raise UserError(f"top is {top}; give how many classes to name, 1 or more.")
        shares = scipy.special.softmax(self.logits(images).astype(np.float64), axis=-1)
        names = self.class_names or [str(index) for index in range(shares.shape[-1])]
        return [
            [(names[index], float(row[index])) for index in np.argsort(-row, kind="stable")[:top]] for row in shares
        ]

    @precision.usual()
    def evaluate(
        self,
        images: str | Iterable[memory.Item],
        labels: Sequence[int] | Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> evaluate.Accuracy:
        """Top-1 and top-5 in percent.

        Args:
            images: a data source such as "folder:LABELLED", or images.
            labels: of the images, from 0, or names; a source has its own. Names are matched with the model's.
            batch_size: how many go through the model at once.

        Raises:
            UserError: no such source, no labels, a class that the model has not, images that cannot be read.
        """
        where = short(images) if isinstance(images, str) else "labels"
        if isinstance(images, str):
            source: sources.Source = sources.load(images, "eval")
        elif labels is None:
            raise UserError("There are no labels to evaluate with; give labels, or a data source that has them.")
        else:
            source = memory.Images(images, labels)
        classes = Classes.of(self.meta["num_classes"], self.class_names, self.meta.get("data_names"))
        source, mesh = matching.matched(source, classes, where), sharding.one_device()
        return evaluate.accuracy(self.model, self.params, source, self.preprocess, batch_size=batch_size, mesh=mesh)

    @precision.usual()
    def export_onnx(self, path: str | os.PathLike, target: str = "avx2") -> pathlib.Path:
        """Writes an ONNX file for ONNX Runtime; see `export.onnx.export` for `target`, the processor it suits."""
        from lraqvit_jax.export import onnx

        path = files.locate(os.fspath(path))
        onnx.export(self, path, target)
        return path

    @precision.usual()
    def save(self, directory: str | os.PathLike) -> pathlib.Path:
        """Writes the artefact into a new directory, which `load` reads; UserError where there is something already."""
        path = files.locate(os.fspath(directory)).absolute()
        if path.exists():
            raise UserError(f"{path} is there already; name a new directory.")
        artifacts.save_artifact(path, self.params, self.meta)
        return path

    def _prepared(self, item: Any, index: int) -> Float[np.ndarray, "size size 3"]:
        array = memory.array(item)
        if array is not None and jax.dtypes.issubdtype(array.dtype, np.floating):
            if array.shape != (self.preprocess.size, self.preprocess.size, 3):
                raise UserError(
                    f"Image {index} is an array of floats {array.shape}; give pixels as uint8, or what preprocess "
                    f"makes, ({self.preprocess.size}, {self.preprocess.size}, 3)."
                )
            return array.astype(np.float32)
        return self.preprocess(memory.decoded(item, index))


@precision.usual()
def load(directory: str | os.PathLike, name: str = "", *, dtype: str = "float32") -> Model:
    """Restores a model with its preprocessing and class names, ready to predict.

    Args:
        directory: an artefact (WORKDIR/checkpoints/NAME, or where `Model.save` wrote) or a work directory.
        name: which artefact of a work directory. "" takes the one that table and report say is to be taken; where
            nothing is evaluated yet, the last of the config's `export.artifacts` that is there, the run that is
            quantized, or `dense`.
        dtype: "float32" or "bfloat16", of the float products.

    Raises:
        UserError: there is no such directory or artefact, or it is damaged.
    """
    artifact = artifacts.load_artifact(_path(files.locate(os.fspath(directory)), name), dtype=dtype)
    return Model(artifact.model, artifact.params, artifact.preprocess, artifact.meta)


def _path(directory: pathlib.Path, name: str) -> pathlib.Path:
    """The artefact that `load` means."""
    if (directory / "meta").is_dir() and not name:
        return directory
    names = artifacts.names(directory / "checkpoints")
    if not names:
        raise UserError(
            f"{directory} is no artefact and no work directory with one; name WORKDIR or WORKDIR/checkpoints/NAME."
        )
    preferred = [name] if name else _preferred(directory)
    chosen = next((candidate for candidate in preferred if candidate in names), "")
    if not chosen:
        what = f"no artefact {name!r}" if name else "several artefacts and none to prefer"
        raise UserError(f"{directory} has {what}; name one of these: {', '.join(names)}.")
    return directory / "checkpoints" / chosen


def _preferred(directory: pathlib.Path) -> list[str]:
    """Names of artefacts by what the configuration says of them, the first one first."""
    written = directory / "config.json"
    if not written.is_file():
        return ["dense"]
    config = restored(files.json_object(written, "name an artefact").get("config", {}), str(written))
    best = results.pick(results.read(directory)["rows"])
    return [*([best["name"]] if best else []), *reversed(config.export.artifacts), config.quant.source, "dense"]


@functools.lru_cache(maxsize=32)
def _apply(model: nn.Module) -> Any:
    return jax.jit(lambda params, images: model.apply({"params": params}, images))
