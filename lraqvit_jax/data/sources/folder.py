"""A folder of images: class-named sub-folders, or `labels.csv` (columns file,label) beside `images/` or `images.zip`.

Where the folder holds `train/` and `val/` (or `validation/`, `test/`), the role picks one of them. Images that lie
directly in the folder, with no classes beside them, have no labels.
"""

import csv
import functools
import io
import pathlib
import zipfile
from collections.abc import Callable

from PIL import Image

from lraqvit_jax.data.sources import Example
from lraqvit_jax.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SPLITS = {"train": ("train",), "calibration": ("train",), "eval": ("val", "validation", "test")}


class Images:
    """Image files with labels (-1 where they have none), read when asked for."""

    def __init__(
        self, where: str, files: list[str], labels: list[int], names: list[str], read: Callable[[str], bytes]
    ) -> None:
        self.where, self.files, self.labels, self.class_names, self._read = where, files, labels, names, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        name = self.files[index]
        try:
            image = Image.open(io.BytesIO(self._read(name)))
            image.load()
        except (OSError, KeyError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"The image {name} in {self.where} cannot be read ({error}); replace it or take it out."
            ) from error
        return {"image": image, "label": self.labels[index]}


def load(name: str, role: str, data_dir: str = "") -> Images:
    """Opens a folder of images.

    Raises:
        UserError: the folder is missing or empty, its labels.csv is broken, or there are no labels to evaluate with.
    """
    del data_dir
    root = pathlib.Path(name).expanduser()
    if not root.is_dir():
        raise UserError(f"data.{role} names the folder {name!r}, which does not exist; correct the path.")
    if (root / "labels.csv").is_file():
        return _labelled(root)
    splits = [root / split for split in SPLITS[role] if (root / split).is_dir()]
    if (root / "train").is_dir() and not splits:
        raise UserError(
            f"The folder {name!r} has train/ but none of {', '.join(SPLITS[role])} for data.{role}; add one."
        )
    root = splits[0] if splits else root
    found = _classes(root) or _unlabelled(root)
    if not found:
        raise UserError(f"The folder {str(root)!r} has no images, in class-named sub-folders or without; add them.")
    if role == "eval" and not found.class_names:
        raise UserError(
            f"data.eval names the folder {str(root)!r}, whose images have no labels to measure with; put them into "
            "class-named sub-folders, or add labels.csv."
        )
    return found


def _classes(root: pathlib.Path) -> Images | None:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    files, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((root / name).rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                files.append(str(path.relative_to(root)))
                labels.append(label)
    return _images(root, files, labels, names) if files else None


def _unlabelled(root: pathlib.Path) -> Images | None:
    files = sorted(entry.name for entry in root.iterdir() if entry.is_file() and entry.suffix.lower() in SUFFIXES)
    return _images(root, files, [-1] * len(files), []) if files else None


def _images(root: pathlib.Path, files: list[str], labels: list[int], names: list[str]) -> Images:
    return Images(str(root), files, labels, names, lambda file: (root / file).read_bytes())


def _labelled(root: pathlib.Path) -> Images:
    table = root / "labels.csv"
    with table.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise UserError(f"{table} needs a header with the columns file and label, and at least one row.")
    labels = []
    for line, row in enumerate(rows, start=2):
        if not (row["label"] or "").isdigit() or not row["file"]:
            raise UserError(f"Line {line} of {table} needs a file and a label that is a whole number from 0; mend it.")
        labels.append(int(row["label"]))
    files = [row["file"] for row in rows]
    read, known = _reader(root)
    missing = [file for file in files if file not in known]
    if missing:
        raise UserError(f"{table} names {missing[0]!r} and {len(missing) - 1} more files that are not there; mend it.")
    return Images(str(root), files, labels, _names(rows, labels), read)


def _names(rows: list[dict[str, str]], labels: list[int]) -> list[str]:
    names = [str(label) for label in range(max(labels) + 1)]
    for row, label in zip(rows, labels, strict=True):
        names[label] = row.get("class_name") or names[label]
    return names


def _reader(root: pathlib.Path) -> tuple[Callable[[str], bytes], set[str]]:
    archive = root / "images.zip"
    if not archive.is_file():
        folder = root / "images"
        known = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return lambda file: (folder / file).read_bytes(), known
    try:
        members = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is not a whole zip file ({error}); copy it again.") from error
    return functools.partial(_read_member, members), set(members.namelist())


def _read_member(members: zipfile.ZipFile, name: str) -> bytes:
    try:
        return members.read(name)
    except zipfile.BadZipFile as error:
        raise OSError(str(error)) from error
