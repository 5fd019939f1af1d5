"""Names of classes: those of a file, or ImageNet's for a model whose card says that it knows those."""

import functools
import pathlib

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError

IMAGENET = 1000
"""Classes of ImageNet-1k."""
MEND = "write one name a line, in the order of the logits"


@functools.cache
def imagenet() -> tuple[str, ...]:
    """The WordNet lemmas of the synsets of ILSVRC-2012; their license lies beside the file."""
    path = pathlib.Path(__file__).parent / "imagenet_classes.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


@functools.cache
def synsets() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's classes, in the order of the logits, which is their own."""
    path = pathlib.Path(__file__).parent / "imagenet_synsets.txt"
    return tuple(path.read_text(encoding="utf-8").split())


@functools.cache
def of_synsets() -> dict[str, str]:
    """ImageNet-1k's names by WordNet id."""
    return dict(zip(synsets(), imagenet(), strict=True))


def read(name: str, num_classes: int) -> list[str]:
    """Reads a text file with one name a line.

    Args:
        name: of the file.
        num_classes: how many there must be; 0 takes what there is.

    Raises:
        UserError: there is no such file, or it has another number of names.
    """
    names = [line.strip() for line in files.text(files.locate(name), MEND).rstrip().splitlines()]
    if len(names) != (num_classes or len(names)) or not all(names):
        count, needed = sum(map(bool, names)), num_classes or len(names)
        raise UserError(f"class_names names {name}, which has {count:,} names for {needed:,} classes; {MEND}.")
    return names
