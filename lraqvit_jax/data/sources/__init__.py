"""Where images come from: `KIND:NAME`, each kind a module here with `load(name, role, data_dir) -> Source`.

`KIND:NAME?labels=none` leaves the labels out, such as those of classes that are not the model's: distillation of blocks
needs none. `KIND:NAME?images=500` takes that many, evenly spread over the source; `?labels=none&images=500` does both.
`A + B` joins sources.
"""

import bisect
import functools
import hashlib
import importlib
import itertools
import json
import pkgutil
import re
from collections.abc import Sequence
from typing import Protocol, TypedDict

from PIL import Image

from lraqvit_jax.base.errors import UserError, nearest

ROLES = ("train", "eval", "calibration")


class Example(TypedDict):
    """One image and its label; -1 where there is none."""

    image: Image.Image
    label: int


class Source(Protocol):
    """A random-access, thread-safe sequence of examples.

    Attributes:
        class_names: of the labels, from 0; [] where there are no labels, or no names.
        numbered: whether the data themselves give numbers, which decide where names do not.
    """

    class_names: list[str]
    numbered: bool

    @property
    def labels(self) -> Sequence[int] | None:
        """Of every example; None where they are not known before the images are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Unlabelled:
    """A source without its labels."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.class_names: list[str] = []
        self.numbered = False

    @property
    def labels(self) -> list[int]:
        return [-1] * len(self)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._source[index]["image"], "label": -1}


class Chosen:
    """These examples of a source, in this order."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self._source, self._places = source, [int(place) for place in places]
        self.class_names, self.numbered = source.class_names, source.numbered

    @property
    def labels(self) -> list[int] | None:
        labels = self._source.labels
        return None if labels is None else [labels[place] for place in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._places[index]]


class Joined:
    """Sources one after another. Where their classes differ, they have those of all, sorted, and labels by name."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = parts
        self._starts = list(itertools.accumulate(map(len, parts), initial=0))
        lists = [part.class_names for part in parts if part.class_names]
        self.same = all(names == lists[0] for names in lists)
        self.class_names: list[str] = (lists or [[]])[0] if self.same else sorted({*itertools.chain(*lists)})
        self.numbered = all(part.numbered for part in parts if part.class_names)
        places = {name: place for place, name in enumerate(self.class_names)}
        self._numbers = [None if self.same else [places[name] for name in part.class_names] for part in parts]

    @property
    def labels(self) -> list[int] | None:
        lists = [part.labels for part in self._parts]
        if None in lists:
            return None
        return [self._label(part, label) for part, labels in enumerate(lists) for label in labels or ()]

    def _label(self, part: int, label: int) -> int:
        numbers = self._numbers[part]
        return int(label) if numbers is None or label < 0 else numbers[label]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        part = bisect.bisect_right(self._starts, index) - 1
        example = self._parts[part][index - self._starts[part]]
        return {"image": example["image"], "label": self._label(part, example["label"])}


def load(source: str, role: str, data_dir: str = "") -> Source:
    """Opens a data source; one that is open already is given again while its folder is as it was.

    Args:
        source: "embedded:mnist5k", "folder:PATH", "tfds:NAME?labels=none", "folder:A + folder:B", ...
        role: "train", "eval" or "calibration"; picks the split where a source has several.
        data_dir: where tfds keeps prepared data; "" is its default.

    Raises:
        UserError: unknown kind, missing data, no such split, no labels to evaluate with, or joined sources of
            different classes of which one has numbers.
    """
    return _load(source, role, data_dir, tuple(map(_state, _parts(source))))


@functools.lru_cache(maxsize=8)
def _load(source: str, role: str, data_dir: str, states: tuple[int, ...]) -> Source:
    names = _parts(source)
    parts = [_load_one(name, role, data_dir, state) for name, state in zip(names, states, strict=True)]
    if len(parts) == 1:
        return parts[0]
    joined = Joined(parts)
    numbered = [name for name, part in zip(names, parts, strict=True) if part.numbered and part.class_names]
    if not joined.same and numbered:
        raise UserError(
            f"data.{role} joins sources of different classes, and {numbered[0]!r} numbers its own; give it "
            "?labels=none, or the same classes."
        )
    return joined


def local(source: str) -> bool:
    """Whether a data source is files of this machine; tfds may have to fetch or prepare."""
    return not any(name.startswith("tfds:") for name in _parts(source))


def _parts(source: str) -> list[str]:
    return re.split(r" \+ (?=\w+:)", source)


def _kinds() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _plain(source: str) -> tuple[str, str]:
    """One source without its options, and these."""
    match = re.fullmatch(r"(.+)\?(\w+=.*)", source)
    return (match[1], match[2]) if match else (source, "")


def _state(source: str) -> int:
    """What is another number once a source has other files; 0 for one that has none of its own."""
    kind, _, name = _plain(source)[0].partition(":")
    state = getattr(importlib.import_module(f"{__name__}.{kind}"), "state", None) if kind in _kinds() else None
    return state(name) if state else 0


def digest(source: str, role: str, data_dir: str = "") -> str:
    """What is another text once a source has other images or labels; arguments and errors as of `load`.

    Of folders it is of names, labels, sizes and contents (of large ones, of some files evenly spread); of other kinds,
    of their number of images and their classes.
    """
    found = hashlib.sha256()
    for name in _parts(source):
        opened = load(_plain(name)[0], role, data_dir)
        module = importlib.import_module(f"{__name__}.{_plain(name)[0].partition(':')[0]}")
        own = module.digest(opened) if hasattr(module, "digest") else ""
        found.update(json.dumps([len(opened), opened.class_names, own]).encode())
    return found.hexdigest()[:16]


@functools.lru_cache(maxsize=8)
def _load_one(source: str, role: str, data_dir: str, state: int) -> Source:
    del state  # of the files, for the cache
    plain, query = _plain(source)
    options = dict(option.partition("=")[::2] for option in query.split("&")) if query else {}
    kinds = _kinds()
    kind, colon, name = plain.partition(":")
    if not colon or kind not in kinds:
        raise UserError(
            f"data.{role} is {source!r}; write KIND:NAME, where KIND is one of these. {nearest(kind, kinds)}"
        )
    count = options.pop("images", None)
    if options not in ({}, {"labels": "none"}) or (count is not None and not re.fullmatch("[0-9]{1,12}", count)):
        raise UserError(
            f"data.{role} has the option {query!r}; write ?labels=none, ?images=500, both with & between, or nothing."
        )
    if options and role == "eval":
        raise UserError(f"data.eval is {source!r}: without labels there is nothing to measure; leave the option out.")
    opened: Source = importlib.import_module(f"{__name__}.{kind}").load(name, role, data_dir)
    if count is not None and not 0 < int(count) <= len(opened):
        raise UserError(f"data.{role} asks for {int(count):,} images of {plain}, which has {len(opened):,}.")
    if count is not None:
        opened = Chosen(opened, [index * len(opened) // int(count) for index in range(int(count))])
    return Unlabelled(opened) if options else opened
