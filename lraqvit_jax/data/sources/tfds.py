"""Any TensorFlow Datasets set, read by `tfds.data_source`: random access to ArrayRecord files, without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import images
from lraqvit_jax.data.images import BadImageError
from lraqvit_jax.data.sources import Example

SPLITS = {"train": ("train",), "calibration": ("train",), "eval": ("validation", "test")}
"""Which split a role reads where the name says none: the first that the set has."""


class Records:
    """Wraps a tfds data source whose features are `image`, not decoded, and `label`."""

    def __init__(self, records: Any, class_names: list[str], name: str = "") -> None:
        self._records, self.class_names, self._name = records, class_names, name
        self.numbered, self.labels = True, None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        try:
            record = self._records[index]
        except Exception as error:  # ArrayRecord raises many kinds for broken files.
            raise UserError(
                f"Record {index} of the tfds set {self._name!r} cannot be read ({short(str(error))}); prepare it again."
            ) from error
        try:
            return {"image": images.decode(record["image"]), "label": int(record["label"])}
        except ValueError as error:
            raise BadImageError(f"of record {index}", f"the tfds set {self._name}", str(error)) from error


def load(name: str, role: str, data_dir: str = "") -> Records:
    """Opens `NAME` or `NAME@SPLIT`, such as "imagenet2012" or "cifar10@train[:90%]".

    Without SPLIT, it is that of the role: "train", and to evaluate "validation" or "test". No other takes its place.

    Raises:
        UserError: no such data set, not prepared, no such split, or not images with labels.
    """
    import tensorflow_datasets as tfds

    name, _, split = name.partition("@")
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    except Exception as error:  # For names that are none, and for broken folders, tfds raises many kinds.
        raise UserError(
            f"data.{role} names the tfds set {name!r}, which tfds cannot open ({_first_line(error)}); "
            "correct the name, or point data.data_dir at the folder that holds it."
        ) from error
    if not {"image", "label"} <= set(builder.info.features or {}):
        raise UserError(f"The tfds set {name!r} has no features image and label; name a classification set.")
    image = builder.info.features["image"]
    if not isinstance(image, tfds.features.Image) or image.np_dtype not in (np.uint8, np.uint16):
        raise UserError(f"The images of the tfds set {name!r} are not of 8 or 16 bits; name another set.")
    if not builder.info.splits:
        raise UserError(
            f"The tfds set {name!r} is not prepared in {builder.data_dir}; prepare it there once as ArrayRecord: "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()."
        )
    split = split or _split(name, role, list(builder.info.splits))
    try:
        records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:  # as above
        raise UserError(
            f"The tfds set {name!r} gives no split {split!r} ({_first_line(error)}); it has "
            f"{', '.join(builder.info.splits)}, which must be stored as ArrayRecord."
        ) from error
    return Records(records, list(builder.info.features["label"].names or []), name)


def _split(name: str, role: str, splits: Sequence[str]) -> str:
    """The split of a role; UserError where the set has none for it, so that nothing is measured on training images."""
    for split in SPLITS[role]:
        if split in splits:
            return split
    raise UserError(
        f"The tfds set {name!r} has no split {' or '.join(SPLITS[role])} for data.{role}, only {', '.join(splits)}; "
        f"write which, such as tfds:{name}@{splits[0]}[90%:]."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
