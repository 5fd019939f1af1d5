"""Images that a program holds: PIL images, arrays, the content of files, or their paths, which are read when asked for.

`put` names them `memory:KEY`, for the configuration; the name is good while the program keeps what `put` returned.
"""

import hashlib
import operator
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, reason, short
from lraqvit_jax.data import images
from lraqvit_jax.data.images import BadImageError
from lraqvit_jax.data.sources import Example
from lraqvit_jax.data.sources.folder import read_file

Item = Image.Image | UInt8[np.ndarray, "height width *channels"] | str | os.PathLike | bytes
CHANNELS = (1, 3, 4)
"""Of an array: grey, RGB, RGB with alpha, which is dropped as in a file. They are the last axis, as (height, width,
channels), or the first where the last cannot be one, as PyTorch has them. Grey may also be (height, width)."""


class Images:
    """Images with labels, -1 where they have none.

    Attributes:
        name: as a source; the same images and labels have the same.
        class_names: of labels that are names; else [].
    """

    def __init__(self, images: Item | Iterable[Item], labels: Sequence[int] | Sequence[str] | None = None) -> None:
        self._items = items(images)
        given: list[Any] = [-1] * len(self._items) if labels is None else _listed(labels)
        self.class_names: list[str] = sorted(set(given)) if given and all(isinstance(x, str) for x in given) else []
        self.labels = [self.class_names.index(name) for name in given] if self.class_names else _whole(given)
        self.numbered = not self.class_names
        if len(self.labels) != len(self._items):
            raise UserError(
                f"There are {len(self._items):,} images and {len(self.labels):,} labels; give one for each."
            )

    @property
    def name(self) -> str:
        digest = hashlib.sha256()
        for item, label in zip(self._items, self.labels, strict=True):
            name = self.class_names[label] if self.class_names else label
            digest.update(f"{name}:".encode() + _identity(item))
        return f"memory:{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        return {"image": decoded(self._items[index], index), "label": self.labels[index]}


_KEPT: weakref.WeakValueDictionary[str, Images] = weakref.WeakValueDictionary()


def put(images: Images) -> str:
    """The name under which `load` finds these images for as long as somebody holds them."""
    name = images.name
    _KEPT[name.removeprefix("memory:")] = images
    return name


def named(
    images: str | Iterable[Item], labels: Sequence[int] | Sequence[str] | None = None
) -> tuple[str, Images | None]:
    """A data source by its name, or images under one; and what has to be held for as long as the name is used."""
    if isinstance(images, str):
        return images, None
    held = Images(images, labels)
    return put(held), held


def load(name: str, role: str, data_dir: str = "") -> Images:
    """Finds what was put; UserError where it is gone, or has no labels to evaluate with."""
    del data_dir
    if name not in _KEPT:
        raise UserError(f"data.{role} names images of a Python session that has ended (memory:{short(name)}).")
    return _KEPT[name]


def items(images: Any) -> list[Any]:
    """One image or several, one by one.

    An array of 2 axes, or of 3 with as many channels as `CHANNELS` says, is one image; with an axis more, several.

    Raises:
        UserError: nothing there, or an array of which nobody can say whether it is one image.
    """
    if isinstance(images, Image.Image | str | bytes | os.PathLike):
        return [images]
    pixels = array(images)
    if pixels is not None and (pixels.ndim == 2 or (pixels.ndim == 3 and _channels(pixels.shape))):
        return [pixels]
    if pixels is not None and pixels.ndim == 3:
        raise UserError(
            f"An array {pixels.shape} is not an image (height, width, channels) of 1, 3 or 4 channels; write several "
            "grey images as (images, height, width, 1)."
        )
    try:
        several = list(images if pixels is None else pixels)
    except TypeError as error:
        raise UserError(
            f"What was given is of type {type(images).__name__}, not an image; give a PIL image, an array or a path."
        ) from error
    if not several:
        raise UserError("There are no images; give some.")
    return several


def _channels(shape: tuple[int, ...]) -> bool:
    """Whether the last axis of a shape, or else the first of three, can be channels."""
    return shape[-1] in CHANNELS or shape[-3] in CHANNELS


def array(value: Any) -> np.ndarray | None:
    """What NumPy, JAX, PyTorch or a like library holds; None for anything else. UserError where it does not lie in this
    machine's memory."""
    if not hasattr(value, "__array__"):
        return None
    try:
        return np.asarray(value)
    except Exception as error:  # Of PyTorch: on another device, or part of a gradient.
        raise UserError(f"An array of type {type(value).__name__} cannot be read ({reason(error)}).") from error


def last(pixels: np.ndarray) -> np.ndarray:
    """One image with its channels last."""
    first = pixels.ndim == 3 and pixels.shape[-1] not in CHANNELS and pixels.shape[0] in CHANNELS
    return np.moveaxis(pixels, 0, -1) if first else pixels


def decoded(item: Any, index: int = 0) -> Image.Image:
    """The image, upright and in RGB: one answer for the same pixels in an array, in a PIL image and in a file.

    Raises:
        BadImageError: content that is no image.
        UserError: a file that cannot be read, an array that is no image of uint8.
    """
    if isinstance(item, str | os.PathLike):
        return _read(item)
    if isinstance(item, bytes):
        return _from_content(item, index)
    image = item if isinstance(item, Image.Image) else _from_array(item, index)
    try:
        return images.checked(image)
    except Exception as error:  # What PIL opened may not be decoded yet: as in `images.decode`.
        raise BadImageError(f"number {index}", "memory", reason(error)) from error


def _from_array(item: Any, index: int) -> Image.Image:
    pixels = array(item)
    if pixels is None:
        raise UserError(f"Image {index} is a {type(item).__name__}; give a PIL image, an array of uint8 or a path.")
    pixels = last(pixels)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    counts = pixels.dtype.kind in "iu" and (pixels.dtype == np.uint8 or (pixels.size and _bytes(pixels)))
    if not counts or pixels.ndim not in (2, 3) or channels not in CHANNELS or not pixels.size:
        raise UserError(
            f"Image {index} is an array of {pixels.dtype} {pixels.shape}; give whole numbers from 0 to 255 of (height, "
            "width), or of (height, width, channels) with 1, 3 or 4 channels."
        )
    pixels = np.ascontiguousarray(pixels, np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _bytes(pixels: np.ndarray) -> bool:
    """Whether whole numbers are pixels of 8 bits. Of 16 bits that happen to be small nobody can say."""
    return pixels.dtype.itemsize > 2 and bool(pixels.min() >= 0) and bool(pixels.max() <= 255)


def _from_content(content: bytes, index: int) -> Image.Image:
    try:
        return images.decode(content)
    except ValueError as error:
        raise BadImageError(f"number {index}", "memory, bytes of a file", str(error)) from error


def _listed(labels: Any) -> list[Any]:
    wrong = f"The labels are {short(repr(labels))}; give a list, one for each image."
    if isinstance(labels, Mapping | Set):
        raise UserError(wrong)
    try:
        held = array(labels)
        return list(labels if held is None else held.tolist())
    except TypeError as error:
        raise UserError(wrong) from error


def _whole(labels: Iterable[Any]) -> list[int]:
    """The labels as Python's whole numbers; what would have to be rounded is refused."""
    try:
        if any(isinstance(label, bool) for label in labels):
            raise TypeError("a truth is no number of a class")
        return [operator.index(label) for label in labels]
    except TypeError as error:
        raise UserError("The labels are neither whole numbers nor names; give one for each image, or -1.") from error


def _read(name: str | os.PathLike) -> Image.Image:
    path = files.locate(os.fspath(name))
    if path.is_dir():
        where = short(str(path))
        raise UserError(f'{where} is a directory; write "folder:{where}", as one text, for the images in it.')
    try:
        return images.decode(read_file(path.parent, path.name))
    except OSError as error:
        raise UserError(
            f"The image {short(str(path))} cannot be read ({short(str(error))}); correct the path."
        ) from error
    except ValueError as error:
        raise BadImageError(path.name, str(path.parent), str(error)) from error


def _identity(item: Item) -> bytes:
    """What tells an image from others: its pixels, or the path, size and time of its file."""
    if isinstance(item, bytes):
        return hashlib.sha256(item).digest()
    if isinstance(item, str | os.PathLike):
        path = files.locate(os.fspath(item)).absolute()
        status = path.stat() if path.exists() else None
        return f"{path}:{status and (status.st_size, status.st_mtime_ns)}".encode()
    pixels = np.asarray(item)
    colours = item.getpalette() if isinstance(item, Image.Image) else None  # that the pixels of a palette stand for
    content = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()
    return f"{pixels.shape}{pixels.dtype}{colours or ''}".encode() + content
