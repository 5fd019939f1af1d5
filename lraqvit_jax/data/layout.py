"""How people keep pictures in folders: which files are pictures, what folders of a split are called, what is litter."""

import collections
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError, short

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs"),
}
"""Of pictures, in any case."""
LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"}
LITTER |= {"system volume information", "lost+found", "icon\r", "__pycache__"}
"""What systems leave in folders, in lower case; names that begin with a dot are such as well."""
SPLITS = {
    "train": ("train", "training", "trn", "trainset"),
    "val": ("val", "valid", "validation", "validate", "dev", "valset", "validset", "validationset", "devset"),
    "test": ("test", "testing", "tst", "testset", "eval", "evaluation"),
}
"""What a split is called, in any case, with words of FILLERS around: seg_train, test_set, Training images."""
FILLERS = {"seg", "set", "data", "dataset", "split", "folder", "images", "image", "imgs", "img", "pictures", "photos"}
UNLABELLED = {"unlabeled", "unlabelled", "pred", "predict"}
"""Words in the names of folders beside those of splits that are no classes."""
PICTURES = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "jpg", "jpeg", "data", "dataset")
"""What a folder of all pictures is called, which is no class, in any case."""
EXAMPLES = 3
DEPTH = 4
"""Of wrappings, at most."""


def plain_files(root: pathlib.Path) -> list[str]:
    """Names of what lies in a folder and is no folder, sorted, without litter."""
    return sorted(entry.name for entry in _entries(root) if not _is(entry.is_dir) and not is_litter(entry.name))


class Tree(NamedTuple):
    """The files below a folder, relative to it, sorted by folder and name: pictures, and others that are no litter."""

    pictures: list[str]
    others: list[str]


def is_litter(name: str) -> bool:
    """Whether a file or a folder of this name is nothing that anybody put there on purpose."""
    return name.startswith(".") or name.lower() in LITTER


def is_picture(name: str) -> bool:
    """Whether a file of this name is a picture."""
    return suffix(name) in SUFFIXES and not is_litter(name)


def suffix(name: str) -> str:
    """The end of a file's name from the last dot on, in lower case; "" where there is none."""
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if dot and stem and "/" not in end and not stem.endswith("/") else ""


def words(name: str) -> set[str]:
    """Of a name, in lower case, without a number at its end."""
    return set(re.split(r"[\s_.-]+", re.sub(r"[\s_.-]*\d*$", "", name.lower()))) - {""}


def split_of(name: str, fillers: Iterable[str] = ()) -> str:
    """Which of SPLITS a folder or a table of this name is; "" for none."""
    rest = words(name) - FILLERS - set(fillers)
    return next((split for split, names in SPLITS.items() if len(rest) == 1 and not rest.isdisjoint(names)), "")


def folders(root: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, sorted, without litter."""
    return sorted(entry.name for entry in _entries(root) if _is(entry.is_dir) and not is_litter(entry.name))


def walk(root: pathlib.Path, above: pathlib.Path | None = None) -> Tree:
    """Everything below a folder. Links are followed, each folder once, and none that leads back to where it comes from.

    Args:
        root: folder.
        above: another one that no link is followed to, nor to what it lies in.
    """
    tree = Tree([], [])
    for name, is_file in _files(root, "", _upwards(root) | (_upwards(above) if above else set())):
        (tree.pictures if is_file and is_picture(name.rpartition("/")[2]) else tree.others).append(name)
    return Tree(*(sorted(names, key=lambda name: name.split("/")) for names in tree))


def state(root: pathlib.Path) -> int:
    """A number that is another one once a file below a folder is added, removed or renamed, or one that is no picture
    is written anew: cheap, since no picture is looked at."""
    return hash(tuple(_states(root, _upwards(root))))


def _states(folder: pathlib.Path, seen: set[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    entries = sorted(_entries(folder), key=lambda entry: entry.name)
    yield str(folder), folder.stat().st_mtime_ns, len(entries)
    for entry in entries:
        if _is(entry.is_dir):
            path = pathlib.Path(entry.path)
            if (identity := _identity(path)) not in seen and not is_litter(entry.name):
                seen.add(identity)
                yield from _states(path, seen)
        elif not is_picture(entry.name) and _is(entry.is_file):
            status = entry.stat()
            yield entry.name, status.st_mtime_ns, status.st_size


def leads_back(folder: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether a folder is a link to `root`, or to what it lies in."""
    return folder.is_symlink() and _identity(folder) in _upwards(root)


def _upwards(folder: pathlib.Path) -> set[tuple[int, int]]:
    whole = folder.resolve()
    return {_identity(path) for path in (whole, *whole.parents)}


def _files(folder: pathlib.Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a plain file) of everything below that is no folder."""
    for entry in _entries(folder):
        if is_litter(entry.name):
            continue
        if not _is(entry.is_dir):
            yield prefix + entry.name, _is(entry.is_file)
        elif (identity := _identity(pathlib.Path(entry.path))) not in seen:
            seen.add(identity)
            yield from _files(pathlib.Path(entry.path), f"{prefix}{entry.name}/", seen)


def _is(ask: Callable[[], bool]) -> bool:
    """What a directory entry answers; no for a link that leads nowhere."""
    try:
        return ask()
    except OSError:
        return False


def _entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"The folder {short(str(folder))} cannot be read ({short(str(error))}); mend that.") from error


def _identity(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def splits(root: pathlib.Path) -> dict[str, str]:
    """{"train", "val" or "test": the folder of that split}; {} where there is none.

    A single split's name among folders of other names that hold pictures is a class, such as train beside bus, unless
    classes lie in it.

    Raises:
        UserError: two folders of one split.
    """
    names = folders(root)
    folder_of: dict[str, str] = {}
    for name in names:
        if not (split := split_of(name)):
            continue
        if split in folder_of:
            raise UserError(
                f"The folder {short(str(root))} has {folder_of[split]}/ and {name}/, two folders of one split; name "
                f"the one that is meant, folder:{short(str(root))}/{name}."
            )
        folder_of[split] = name
    others = [name for name in names if name not in folder_of.values() and name.lower() not in PICTURES]
    others = [name for name in others if not words(name) & UNLABELLED]
    alone = len(folder_of) == 1 and not any(folders(root / name) for name in folder_of.values())
    return {} if alone and any(has_pictures(root / name) for name in others) else folder_of


def has_pictures(folder: pathlib.Path) -> bool:
    """Whether there is a picture below a folder."""
    return any(
        is_file and is_picture(name.rpartition("/")[2]) for name, is_file in _files(folder, "", _upwards(folder))
    )


def inner(root: pathlib.Path) -> pathlib.Path:
    """The folder that has the data: `root`, or the only one in it where that is a wrapping, as zip files leave it.

    Wrappings are data/data/cat, images/cat, and a lone folder of nothing but folders, of splits or of classes.
    """
    for _ in range(DEPTH):
        if any(is_picture(name) for name in plain_files(root)):
            break
        names = [name for name in folders(root) if has_pictures(root / name)]
        if len(names) != 1 or split_of(names[0]) not in ("", split_of(root.name)) or not _wraps(root, names[0]):
            break
        root = root / names[0]
    return root


def _wraps(root: pathlib.Path, name: str) -> bool:
    """Whether the only folder with pictures is no class."""
    inside = root / name
    if name.lower() in PICTURES or (name.lower() == root.name.lower() and folders(inside)):
        return True
    if len(folders(root)) > 1 or any(is_picture(file) for file in plain_files(inside)):
        return False
    deep = inner(inside)
    return bool(splits(deep)) or sum(has_pictures(deep / folder) for folder in folders(deep)) > 1


def left_out(root: pathlib.Path, names: Sequence[str], why: str = "no pictures that are read") -> None:
    """Warns once of the files of a folder that are not used: how many of which kind, and an example of each."""
    if not names:
        return
    kinds = collections.defaultdict(list)
    for name in names:
        kinds[suffix(name) or "no suffix"].append(name)
    shown = sorted(kinds.items(), key=lambda item: -len(item[1]))[:EXAMPLES]
    listed = ", ".join(f"{len(some):,} of {kind} ({short(some[0], 60)})" for kind, some in shown)
    rest = ", and other kinds" * (len(kinds) > EXAMPLES)
    count = f"{len(names):,} files are" if len(names) > 1 else "1 file is"
    console.warn_once(f"{short(str(root))}: {count} left out ({why}): {listed}{rest}.")
