"""Where images come from: `KIND:NAME`, each kind a module here with `load(name, role, data_dir) -> Source`."""

import functools
import importlib
import pkgutil
from typing import Protocol, TypedDict

from PIL import Image

from lraqvit_jax.errors import UserError, nearest

ROLES = ("train", "eval", "calibration")


class Example(TypedDict):
    """One image and its label; -1 where there is none."""

    image: Image.Image
    label: int


class Source(Protocol):
    """A random-access, thread-safe sequence of examples."""

    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@functools.lru_cache(maxsize=8)
def load(source: str, role: str, data_dir: str = "") -> Source:
    """Opens a data source.

    Args:
        source: "embedded:mnist5k", "folder:PATH", "tfds:NAME", ...
        role: "train", "eval" or "calibration"; picks the split where a source has several.
        data_dir: where tfds keeps prepared data; "" is its default.

    Raises:
        UserError: unknown kind, missing data, no such split.
    """
    kinds = [module.name for module in pkgutil.iter_modules(__path__)]
    kind, colon, name = source.partition(":")
    if not colon or kind not in kinds:
        raise UserError(
            f"data.{role} is {source!r}; write KIND:NAME, where KIND is one of these. {nearest(kind, kinds)}"
        )
    return importlib.import_module(f"{__name__}.{kind}").load(name, role, data_dir)
