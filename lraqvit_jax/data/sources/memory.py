"""Images that a program holds: PIL images, uint8 arrays, or paths of files, which are read when they are asked for.

`put` names them `memory:KEY`, for the configuration; the name is good while the program keeps what `put` returned.
"""

import hashlib
import os
import pathlib
import weakref
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import images
from lraqvit_jax.data.images import BadImageError
from lraqvit_jax.data.sources import Example
from lraqvit_jax.data.sources.folder import read_file

Item = Image.Image | UInt8[np.ndarray, "height width *channels"] | str | os.PathLike


class Images:
    """Images with labels, -1 where they have none.

    Attributes:
        name: as a source; the same images and labels have the same.
        class_names: of the labels; may be empty.
    """

    def __init__(self, items: Iterable[Item], labels: Sequence[int] | None = None) -> None:
        self._items = list(items)
        self.labels = [-1] * len(self._items) if labels is None else [int(label) for label in labels]
        self.class_names: list[str] = []
        if not self._items:
            raise UserError("There are no images; give some.")
        if len(self.labels) != len(self._items):
            raise UserError(
                f"There are {len(self._items):,} images and {len(self.labels):,} labels; give one for each."
            )

    @property
    def name(self) -> str:
        digest = hashlib.sha256()
        for item, label in zip(self._items, self.labels, strict=True):
            digest.update(f"{label}:".encode() + _identity(item))
        return f"memory:{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        return {"image": decoded(self._items[index], index), "label": self.labels[index]}


_KEPT: weakref.WeakValueDictionary[str, Images] = weakref.WeakValueDictionary()


def put(found: Images) -> str:
    """The name under which `load` finds these images for as long as somebody holds them."""
    name = found.name
    _KEPT[name.removeprefix("memory:")] = found
    return name


def load(name: str, role: str, data_dir: str = "") -> Images:
    """Finds what was put; UserError where it is gone, or has no labels to evaluate with."""
    del data_dir
    if name not in _KEPT:
        raise UserError(f"data.{role} names images of a Python session that has ended (memory:{short(name)}).")
    return _KEPT[name]


def decoded(item: Item, index: int = 0) -> Image.Image:
    """The image, upright and in RGB where it comes from a file.

    Raises:
        BadImageError: content that is no image.
        UserError: a file that cannot be read, an array that is no image of uint8.
    """
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, np.ndarray):
        if (
            item.dtype != np.uint8
            or item.ndim not in (2, 3)
            or 0 in item.shape
            or item.shape[2:] not in ((), (1,), (3,))
        ):
            raise UserError(
                f"Image {index} is an array of {item.dtype} {item.shape}; give uint8 of (height, width, 3) or "
                "(height, width)."
            )
        return Image.fromarray(item[..., 0] if item.shape[2:] == (1,) else item)
    if not isinstance(item, str | os.PathLike):
        raise UserError(f"Image {index} is a {type(item).__name__}; give a PIL image, an array of uint8 or a path.")
    path = pathlib.Path(item).expanduser()
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
    if isinstance(item, str | os.PathLike):
        path = pathlib.Path(item).expanduser().absolute()
        status = path.stat() if path.exists() else None
        return f"{path}:{status and (status.st_size, status.st_mtime_ns)}".encode()
    pixels = np.asarray(item)
    return f"{pixels.shape}{pixels.dtype}".encode() + hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()
