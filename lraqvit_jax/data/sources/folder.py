"""A folder of images, as people keep them.

Class-named sub-folders; or a table (see `data.labels`) beside the pictures, beside `images/` or `images.zip`, or among
the pictures of a split. Where the folder holds splits (train, val, test; see `data.layout`), the role picks one of
them. Images with neither have no labels. System files are left out. Nothing is ever unpacked to disk.
"""

import functools
import hashlib
import json
import pathlib
import stat
from collections.abc import Callable, Sequence

from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import images, labels, layout
from lraqvit_jax.data.archive import Archive
from lraqvit_jax.data.images import BadImageError
from lraqvit_jax.data.labels import Labels
from lraqvit_jax.data.paths import Paths
from lraqvit_jax.data.sources import Example

SPLITS = {"train": ("train",), "calibration": ("train",), "eval": ("val", "test")}
"""Which split a role reads: the first that is there."""
LAYOUTS = (
    "what is read is a sub-folder a class, train/ and val/ (or test/) of these, or a table of files and labels "
    "(labels.csv, train.csv, metadata.csv or .jsonl, _classes.csv) beside the pictures, images/ or images.zip"
)
SIZES, CONTENTS = 20_000, 1000
"""Files of which `digest` asks for the size, and reads the content, at most."""
GENERAL = {"labels", "label", "metadata", "annotations", "annotation", "classes", "class", "files", "gt", "solution"}
"""Words in the name of a table of labels."""


class Images:
    """Image files with labels (-1 where they have none), read when asked for."""

    def __init__(self, where: str, rows: Labels, read: Callable[[str], bytes]) -> None:
        self.where, self.files, self.labels, self.class_names = where, rows.files, rows.labels, rows.names
        self.numbered, self._read = rows.numbered, read

    def __len__(self) -> int:
        return len(self.files)

    def content(self, name: str) -> bytes:
        """Of a file, as far as it can be read."""
        try:
            return self._read(name)
        except (OSError, ValueError) as error:
            return str(error).encode()

    def size(self, name: str) -> int:
        """Bytes of a file in a folder; 0 in an archive, which `state` and the contents tell of."""
        path = pathlib.Path(self.where, name)
        return path.stat().st_size if path.is_file() else 0

    def __getitem__(self, index: int) -> Example:
        """Reads an image; BadImageError for content that is none, UserError where the disk does not give it."""
        name = self.files[index]
        try:
            return {"image": images.decode(self._read(name)), "label": self.labels[index]}
        except OSError as error:
            raise UserError(
                f"The file {name} in {self.where} cannot be read ({error}); look after the disk."
            ) from error
        except ValueError as error:
            raise BadImageError(name, self.where, str(error)) from error


def load(name: str, role: str, data_dir: str = "") -> Images:
    """Opens a folder of images, or of the images that a table in it names.

    Raises:
        UserError: the folder is missing or empty, a table is broken, or there are no labels to evaluate with.
    """
    del data_dir
    root = files.locate(name)
    if root.suffix.lower() in labels.SUFFIXES and root.is_file():
        return _of_table(root.parent, [root], role, "")
    if not root.is_dir():
        raise UserError(f"data.{role} names the folder {short(name)!r}, which does not exist; correct the path.")
    opened = _opened(root, role)
    if not opened:
        raise UserError(f"The folder {short(str(root))!r} has no images for data.{role}; {LAYOUTS}.")
    if role == "eval" and not opened.class_names:
        for table in _tables(root):
            if table.suffix.lower() == ".txt":
                continue
            if layout.split_of(table.stem, GENERAL) in SPLITS[role] or layout.words(table.stem) & GENERAL:
                labels.read(table)  # which says what is wrong with it
        raise UserError(
            f"data.eval names {short(opened.where)!r}, whose images have no labels to measure with; {LAYOUTS}."
        )
    return opened


def state(name: str) -> int:
    """Changes when a file is added, removed or renamed, or one that is no picture is written anew."""
    root = files.locate(name)
    return layout.state(root if root.is_dir() else root.parent) if root.exists() else 0


def digest(opened: Images) -> str:
    """Of names, labels, sizes and contents; of large folders, those of some files evenly spread."""
    found = hashlib.sha256(json.dumps([opened.files, list(map(int, opened.labels))]).encode())
    for index in _spread(len(opened), SIZES):
        found.update(f"{opened.size(opened.files[index])},".encode())
    for index in _spread(len(opened), CONTENTS):
        found.update(opened.content(opened.files[index]))
    return found.hexdigest()


def _spread(count: int, most: int) -> list[int]:
    return sorted({index * count // min(count, most) for index in range(min(count, most))})


def _opened(root: pathlib.Path, role: str) -> Images | None:
    """The images of a role, by the first layout that the folder has; None where there are none."""
    if table := next((path for path in _tables(root) if path.name.lower() == "labels.csv"), None):
        return _of_table(root, [table], role, "")
    splits = layout.splits(root)
    if not splits and not _tables(root, labelled=True):
        inside = layout.inner(root)
        if inside != root:
            return _opened(inside, role)
    split = next((split for split in SPLITS[role] if split in splits), "")
    if splits and not split:
        raise UserError(
            f"The folder {short(str(root))!r} has {', '.join(f'{name}/' for name in splits.values())} and nothing for "
            f"data.{role}, which reads {' or '.join(SPLITS[role])}; add that, or name the one that is meant, "
            f"folder:{short(str(root))}/{next(iter(splits.values()))}."
        )
    if split:
        _say_split(root, splits, split, role)
    part = layout.inner(root / splits[split]) if split else root
    return (
        (_of_tables(root / splits[split], role, "") if split else None)
        or (_classes(part) if split else None)
        or (_of_tables(root / splits[split], role, "", whatever=True) if split else None)
        or _of_tables(root, role, splits.get(split, ""))
        or _classes(part)
        or _of_tables(root, role, splits.get(split, ""), whatever=True)
        or _unlabelled(part)
    )


def _say_split(root: pathlib.Path, splits: dict[str, str], split: str, role: str) -> None:
    """Says which of two splits an evaluation reads, and what else lies beside them."""
    if role == "eval" and {"val", "test"} <= set(splits):
        _say(f"data.eval: of {short(str(root))}, {splits[split]}/ is read and {splits['test']}/ is not.")
    others = [name for name in layout.folders(root) if name not in splits.values()]
    if others := [f"{short(name)}/" for name in others if layout.has_pictures(root / name)]:
        console.warn_once(
            f"{short(str(root))}: {', '.join(others)} beside {splits[split]}/ is not a split and is left out."
        )


_say = functools.cache(console.say)


def _classes(root: pathlib.Path) -> Images | None:
    """A sub-folder a class, in the order of their names; None where no sub-folder has pictures.

    A folder of all pictures (images/) is no class, nor is one that has other files alone.
    """
    names, rows, others = list[str](), list[tuple[str, int]](), list[str]()
    for name in layout.folders(root):
        if layout.leads_back(root / name, root):
            continue
        tree = layout.walk(root / name, root)
        others += [f"{name}/{file}" for file in tree.others]
        if tree.pictures or not tree.others:
            rows += [(f"{name}/{file}", len(names)) for file in tree.pictures]
            names.append(name)
    if not rows or (len(names) == 1 and names[0].lower() in layout.PICTURES):
        return None
    plain = layout.plain_files(root)
    layout.left_out(root, [*others, *(name for name in plain if not layout.is_picture(name))])
    beside = [name for name in plain if layout.is_picture(name)]
    layout.left_out(root, beside, "they lie beside the folders of classes")
    return _images(root, Labels([file for file, _ in rows], [label for _, label in rows], names, numbered=False))


def _unlabelled(root: pathlib.Path) -> Images | None:
    """Pictures without labels: those that lie in the folder, in images/ or in images.zip."""
    plain = layout.plain_files(root)
    if "images.zip" in plain:
        archive = Archive(root / "images.zip")
        pictures = sorted(filter(layout.is_picture, archive.names))
        archive.check(pictures)
        return Images(str(root), _without_labels(pictures), archive) if pictures else None
    if pictures := [name for name in plain if layout.is_picture(name)]:
        layout.left_out(root, [name for name in plain if not layout.is_picture(name)])
        return _images(root, _without_labels(pictures))
    inside = [name for name in layout.folders(root) if name.lower() in layout.PICTURES]
    return _unlabelled(root / inside[0]) if len(inside) == 1 else None


def _without_labels(pictures: list[str]) -> Labels:
    return Labels(pictures, [-1] * len(pictures), [], numbered=False)


def _images(root: pathlib.Path, rows: Labels) -> Images:
    return Images(str(root), rows, functools.partial(read_file, root))


def read_file(folder: pathlib.Path, name: str) -> bytes:
    """A file's content; ValueError for what is too large or no plain file. A pipe is not opened: it would wait."""
    status = (folder / name).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a plain file")
    if status.st_size > images.MAX_BYTES:
        raise ValueError(f"its {status.st_size:,} bytes are more than {images.MAX_BYTES:,}")
    return (folder / name).read_bytes()


def _tables(root: pathlib.Path, labelled: bool = False) -> list[pathlib.Path]:
    """Tables in a folder, sorted; perhaps only those of files and labels. A competition's form to fill in is none."""
    names = [name for name in layout.plain_files(root) if pathlib.Path(name).suffix.lower() in labels.SUFFIXES]
    paths = [root / name for name in names if "submission" not in name.lower()]
    return [path for path in paths if labels.is_labelled(path)] if labelled else paths


def _of_tables(root: pathlib.Path, role: str, part: str, whatever: bool = False) -> Images | None:
    """The images that the table of a role names, or else a table for all of them, or else the only one that there is.

    Args:
        root: folder with the tables.
        role: see `load`.
        part: the sub-folder of the role's split; "" where there is none.
        whatever: takes a table of any name.
    """
    tables = _tables(root, labelled=True)
    split_of = {path: layout.split_of(path.stem, GENERAL) for path in tables}
    own = [[path for path in tables if split_of[path] == split] for split in SPLITS[role]]
    general = [path for path in tables if not split_of[path] and (whatever or layout.words(path.stem) & GENERAL)]
    general = [path for path in general if _names_files(path, part)]
    lone = [] if part else [path for path in tables if split_of[path]]
    chosen = next(filter(None, [*own, general, lone]), [])
    return _of_table(root, chosen, role, part) if chosen else None


def _names_files(table: pathlib.Path, part: str) -> bool:
    """Whether the first rows of a table name any file that is there; a list of classes does not."""
    _, paths = _reader(table.parent, part)
    first = labels.first_files(table)
    return len(paths.find(first, table)[1]) < len(first)


def _of_table(root: pathlib.Path, tables: Sequence[pathlib.Path], role: str, part: str) -> Images:
    """The images that a table names; UserError where there are several tables, or files that are not there."""
    if len(tables) > 1:
        names = " and ".join(path.name for path in tables[:2])
        raise UserError(
            f"The folder {short(str(root))!r} has the tables {short(names)}; name the one that is meant, "
            f"folder:{short(str(tables[0]))}."
        )
    table = tables[0]
    if layout.split_of(table.stem, GENERAL) not in ("", *SPLITS[role]):
        _say(f"data.{role}: {short(str(table))} is the only table with labels, and is read.")
    rows = labels.read(table)
    read, paths = _reader(root, part)
    files, missing = paths.find(rows.files, table)
    if missing:
        raise UserError(
            f"{table} names {short(missing[0])!r} and {len(missing) - 1} more files that are not there; mend it."
        )
    splits = layout.splits(root)
    rows = _of_role(rows._replace(files=files), role, splits)
    if not rows.files:
        raise UserError(f"{table} names no image with a label for data.{role}; {LAYOUTS}.")
    if isinstance(read, Archive):
        read.check(rows.files)
    nothing, _ = paths.find(rows.nothing, table)
    layout.left_out(root, nothing, f"of no class in {table.name}")
    elsewhere = tuple(f"{name}/" for name in splits.values() if name != part)
    unnamed = [name for name in sorted(paths.pictures - {*files, *nothing}) if not name.startswith(elsewhere)]
    if not any(layout.split_of(path.stem, GENERAL) for path in _tables(root) if path != table):
        layout.left_out(root, unnamed, f"not named in {table.name}")
    return Images(str(root), rows, read)


def _of_role(rows: Labels, role: str, splits: dict[str, str]) -> Labels:
    """The rows of a role's split, where a column or the folders say which; all of them where neither does."""
    of_file = {folder: split for split, folder in splits.items()}
    split_of = rows.splits or [of_file.get(file.partition("/")[0], "") for file in rows.files]
    split = next((split for split in SPLITS[role] if split in split_of), "")
    if not split or not all(split_of):
        return rows
    kept = [place for place, name in enumerate(split_of) if name == split]
    return rows._replace(files=[rows.files[place] for place in kept], labels=[rows.labels[place] for place in kept])


def _reader(root: pathlib.Path, part: str) -> tuple[Callable[[str], bytes], Paths]:
    """What reads the pictures of a folder that has a table, and their names."""
    if (root / "images.zip").is_file():
        archive = Archive(root / "images.zip")
        return archive, Paths(archive.names, ["", *(f"{name}/" for name in layout.PICTURES)])
    tree = layout.walk(root)
    first = [f"{name}/" for name in layout.folders(root) if name.lower() in layout.PICTURES]
    prefixes = [f"{part}/", *first, ""] if part else [*first, ""]
    return functools.partial(read_file, root), Paths([*tree.pictures, *tree.others], prefixes)
