"""A model that is ready to use: it knows its plan, how its images are prepared, and what its classes are called."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special
from flax import linen as nn
from jaxtyping import Float

from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError, nearest, short, whole_number
from lraqvit_jax.config import restored
from lraqvit_jax.data import matching, sources
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.sources import memory
from lraqvit_jax.devices import precision, sharding
from lraqvit_jax.run import results
from lraqvit_jax.tasks import classification as evaluate
from lraqvit_jax.weights import artifacts, hub

HUB = "hub:"
"""Before the name of a repository of the Hugging Face Hub."""
DTYPES = ("float32", "bfloat16", "float16")
Images = memory.Item | np.ndarray | Iterable[memory.Item | np.ndarray]
"""One image or several: PIL images, paths, bytes of a file, arrays of whole numbers from 0 to 255, (height, width),
(height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, or arrays of floats (size, size, 3) that
are normalized already. An array of several has an axis more, and channels."""


class _Prepared(NamedTuple):
    """An image that is ready for the model."""

    values: Float[np.ndarray, "size size 3"]


@dataclasses.dataclass(frozen=True, repr=False)
class Model(artifacts.Artifact):
    """An artefact on one device, with what one does with a model. `load` and `compress` make it.

    Example:
        >>> model = lraqvit_jax.load("DIR")
        >>> model.predict("photo.jpg")
        [[('tabby, tabby cat', 0.61), ('tiger cat', 0.22), ...]]

    Attributes:
        model: Flax module; `model.apply({"params": params}, images)` gives logits, or, without classes, features.
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
        """Logits, float32; of a model without classes, features.

        Args:
            images: one or several; see `Images`.
            batch_size: how many go through the model at once, at most.

        Raises:
            UserError: an image that cannot be read, an array that is none.
        """
        items, batch_size = memory.items(images), whole_number(batch_size, "batch_size")
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
            images: one or several; see `Images`. Of several, one that cannot be read is named in a warning and has [].
            top: how many classes.

        Raises:
            UserError: as `logits`, where no image can be read; a model without classes.
        """
        top = whole_number(top, "top")
        self._check_classes("predict")
        items = memory.items(images)
        ready = [self._readable(item, index, alone=len(items) == 1) for index, item in enumerate(items)]
        found = [one for one in ready if not isinstance(one, UserError)]
        if not found:
            raise next(one for one in ready if isinstance(one, UserError))
        rows = iter(scipy.special.softmax(self.logits(found).astype(np.float64), axis=-1))
        return [[] if isinstance(one, UserError) else self._named(next(rows), top) for one in ready]

    def _readable(self, item: Any, index: int, alone: bool) -> Any:
        """The image as `preprocess` makes it; what is wrong with it, said, where there are others."""
        try:
            return _Prepared(self._prepared(item, index))
        except UserError as error:
            if not alone:
                console.warn(str(error))
            return error

    def _named(self, shares: Float[np.ndarray, " classes"], top: int) -> list[tuple[str, float]]:
        names = self.class_names or [str(index) for index in range(len(shares))]
        return [(names[index], float(shares[index])) for index in np.argsort(-shares, kind="stable")[:top]]

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
            UserError: no such source, no labels, a class that the model has not, images that cannot be read; a model
                without classes.
        """
        batch_size = whole_number(batch_size, "batch_size")
        self._check_classes("evaluate by")
        where = short(images) if isinstance(images, str) else "labels"
        if isinstance(images, str) and labels is not None:
            raise UserError(f"labels were given beside {where}, which has its own; leave one of them out.")
        if isinstance(images, str):
            source: sources.Source = sources.load(images, "eval")
        elif labels is None:
            raise UserError("There are no labels to evaluate with; give labels, or a data source that has them.")
        else:
            source = memory.Images(images, labels)
        classes = Classes.of(self.meta["num_classes"], self.class_names, self.meta.get("data_names"))
        source, mesh = matching.matched(source, classes, where), sharding.one_device()
        batch_size = min(batch_size, max(1, len(source)))
        score = evaluate.accuracy(self.model, self.params, source, self.preprocess, batch_size=batch_size, mesh=mesh)
        if not score.images and not score.skipped:
            raise UserError("No image has a label, so there is nothing to measure; give labels from 0.")
        return score

    @precision.usual()
    def export_onnx(self, path: str | os.PathLike, target: str = "avx2", **options: Any) -> pathlib.Path:
        """Writes an ONNX file; see `export.onnx.export` for `target`, what it suits, and for `opset`, `images` and
        `weights`."""
        from lraqvit_jax.export import onnx

        path = files.locate_file(path, "model.onnx")
        onnx.export(self, path, target, **options)
        return path

    @precision.usual()
    def export_litert(
        self, path: str | os.PathLike, variant: str = "float32", images: Images | None = None
    ) -> pathlib.Path:
        """Writes a .tflite file for LiteRT; needs requirements-litert.txt.

        Args:
            path: of the file.
            variant: "float32", "float16", "weight_only", "dynamic", "static" or "integer"; see `export.litert`.
            images: on which a static file calibrates its outputs; 32 are enough.

        Raises:
            UserError: as `export.litert.export`, and for images that cannot be read.
        """
        from lraqvit_jax.export import litert

        path = files.locate_file(path, "model.tflite")
        ready = None
        if images is not None:
            ready = np.stack([self._prepared(item, index) for index, item in enumerate(memory.items(images))])
        litert.export(self, path, variant, ready)
        return path

    @precision.usual()
    def save(self, directory: str | os.PathLike) -> pathlib.Path:
        """Writes the artefact into a new directory, which `load` reads; UserError where there is something already."""
        path = files.locate(directory).absolute()
        if path.exists():
            raise UserError(f"{path} is there already; name a new directory.")
        files.locate_new(path)
        artifacts.save_artifact(path, self.params, self.meta)
        return path

    def _check_classes(self, what: str) -> None:
        if not self.meta["num_classes"]:
            raise UserError(
                f"{self.name} gives features and has no classes to {what}; `logits` gives the features of images, for "
                "you to compare with those of the dense model."
            )

    def _prepared(self, item: Any, index: int) -> Float[np.ndarray, "size size 3"]:
        if isinstance(item, _Prepared):
            return item.values
        array = memory.array(item)
        if array is not None and jax.dtypes.issubdtype(array.dtype, np.floating):
            return self._checked(memory.last(array).astype(np.float32), index)
        return self.preprocess(memory.decoded(item, index))

    def _checked(self, values: np.ndarray, index: int) -> np.ndarray:
        """Floats that `preprocess` may have made; UserError for any others."""
        if wrong := self._wrong(values):
            side = self.preprocess.size
            raise UserError(
                f"Image {index} {wrong}; give pixels as whole numbers from 0 to 255, or what preprocess makes, "
                f"({side}, {side}, 3)."
            )
        return values

    def _wrong(self, values: np.ndarray) -> str:
        """Why floats are not a prepared image, as the rest of a sentence; "" where they may be."""
        side, mean, std = self.preprocess.size, np.asarray(self.preprocess.mean), np.asarray(self.preprocess.std)
        black, white = -mean / std, (1 - mean) / std
        slack = 0.05 * (white - black)
        if values.shape != (side, side, 3):
            return f"is an array of floats {values.shape}"
        if not np.isfinite(values).all():
            return "has values that are NaN or infinite"
        least, most = values.min(), values.max()
        if (values < black - slack).any() or (values > white + slack).any():
            return f"has floats from {least:.3g} to {most:.3g}, which preprocess does not make"
        if 0 <= least < most <= 1 and black.max() < -0.1:
            return "has floats from 0 to 1, which are pixels, or those of a picture without a dark spot"
        return ""

    def __repr__(self) -> str:
        """One line."""
        meta = self.meta
        gives = f"{meta['num_classes']} classes" if meta["num_classes"] else "features"
        what = f"{meta['name']}, {meta['model']}, {gives}, {self.size_mb:.3f} MB"
        return f"<lraqvit_jax.Model {what}>"


@precision.usual()
def load(directory: str | os.PathLike, name: str = "", *, dtype: str = "float32") -> Any:
    """Restores a model with its preprocessing and class names, ready to predict: a `Model`.

    Of the work directory of a function (`configs/any.py`) it restores the `Function`.

    Args:
        directory: an artefact (WORKDIR/checkpoints/NAME, or where `Model.save` wrote) or a work directory; or what the
            stage `share` made, as the folder WORKDIR/hub or by its name on the Hub, "hub:USER/NAME[@REVISION]".
        name: which artefact of a work directory. "" takes the one that table and report say is to be taken; where
            nothing is evaluated yet, the last of the config's `export.artifacts` that is there, the run that is
            quantized, or `dense`.
        dtype: of `DTYPES`, of the float products.

    Raises:
        UserError: there is no such directory or artefact, or it is damaged.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {short(repr(dtype))}; {nearest(dtype, DTYPES)}")
    if shared := _shared(directory):
        from lraqvit_jax.export import safetensors

        return _model(safetensors.load(shared, dtype))
    from lraqvit_jax.stages import function  # most do not need it, and it takes a second to import

    if function.is_one(files.locate(directory)):
        return function.load(directory, name)
    return _model(artifacts.load_artifact(_path(files.locate(directory), name), dtype=dtype))


def _model(artifact: artifacts.Artifact) -> Model:
    return Model(artifact.model, artifact.params, artifact.preprocess, artifact.meta)


def _shared(directory: str | os.PathLike) -> pathlib.Path | None:
    """The file of a repository of the Hub, or of the folder of one; None where it is something else."""
    if isinstance(directory, str) and directory.startswith(HUB):
        return hub.find(hub.checked(directory.removeprefix(HUB)), (hub.WEIGHTS,))
    path = files.locate(directory)
    return path / hub.WEIGHTS if (path / hub.WEIGHTS).is_file() and not (path / "checkpoints").is_dir() else None


def _path(directory: pathlib.Path, name: str) -> pathlib.Path:
    """The artefact that `load` means."""
    if (directory / "meta").is_dir() and not name:
        return directory
    names = artifacts.names(directory / "checkpoints")
    if not names:
        raise UserError(
            f"{directory} is neither an artefact nor a work directory that has one; name WORKDIR or "
            "WORKDIR/checkpoints/NAME."
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
