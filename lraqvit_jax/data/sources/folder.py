"""A folder of images: class-named sub-folders, or `labels.csv` (columns file,label) beside `images/` or `images.zip`.

Where the folder holds `train/` and `val/` (or `validation/`, `test/`), the role picks one of them. Images that lie
directly in the folder, with no classes beside them, have no labels. Hidden files (".name") are left out. Nothing is
ever unpacked to disk.
"""

import functools
import os
import pathlib
import stat
import zipfile
from collections.abc import Callable

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import images, labels
from lraqvit_jax.data.images import BadImageError
from lraqvit_jax.data.sources import Example

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
    """Opens a folder of images.

    Raises:
        UserError: the folder is missing or empty, its labels.csv is broken, or there are no labels to evaluate with.
    """
    del data_dir
    root = files.locate(name)
    if not root.is_dir():
        raise UserError(f"data.{role} names the folder {short(name)!r}, which does not exist; correct the path.")
    if (root / "labels.csv").is_file():
        return _labelled(root)
    splits = [root / split for split in SPLITS[role] if (root / split).is_dir()]
    if (root / "train").is_dir() and not splits:
        raise UserError(
            f"The folder {name!r} has train/ but none of {', '.join(SPLITS[role])} for data.{role}; add one."
        )
    root = splits[0] if splits else root
    opened = _classes(root) or _unlabelled(root)
    if not opened:
        raise UserError(f"The folder {str(root)!r} has no images, in class-named sub-folders or without; add them.")
    if role == "eval" and not opened.class_names:
        raise UserError(
            f"data.eval names the folder {str(root)!r}, whose images have no labels to measure with; put them into "
            "class-named sub-folders, or add labels.csv."
        )
    return opened


def _classes(root: pathlib.Path) -> Images | None:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files, file_labels = [], []
    for label, name in enumerate(names):
        for path in sorted((root / name).rglob("*")):
            if is_image(path):
                files.append(str(path.relative_to(root)))
                file_labels.append(label)
    return _images(root, files, file_labels, names) if files else None


def _unlabelled(root: pathlib.Path) -> Images | None:
    files = sorted(entry.name for entry in root.iterdir() if is_image(entry))
    return _images(root, files, [-1] * len(files), []) if files else None


def is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images(root: pathlib.Path, files: list[str], file_labels: list[int], names: list[str]) -> Images:
    return Images(str(root), files, file_labels, names, functools.partial(read_file, root))


def read_file(folder: pathlib.Path, name: str) -> bytes:
    """A file's content; ValueError for what is too large or no plain file. A pipe is not opened: it would wait."""
    status = (folder / name).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no plain file")
    if status.st_size > images.MAX_BYTES:
        raise ValueError(f"its {status.st_size:,} bytes are more than {images.MAX_BYTES:,}")
    return (folder / name).read_bytes()


def _labelled(root: pathlib.Path) -> Images:
    table = root / "labels.csv"
    rows = labels.read(table)
    read, present = _reader(root)
    missing = [file for file in rows.files if file not in present]
    if missing:
        raise UserError(
            f"{table} names {short(missing[0])!r} and {len(missing) - 1} more files that are not there; mend it."
        )
    if isinstance(read, Archive):
        read.check(rows.files)
    return Images(str(root), rows.files, rows.labels, rows.names, read)


def _reader(root: pathlib.Path) -> tuple[Callable[[str], bytes], set[str]]:
    path, folder = root / "images.zip", root / "images"
    if path.is_file():
        archive = Archive(path)
        return archive, archive.names
    names = {str(file.relative_to(folder)).replace(os.sep, "/") for file in folder.rglob("*") if file.is_file()}
    return functools.partial(read_file, folder), names


class Archive:
    """The members of a zip file, read one at a time in memory; `zipfile` lets threads share it."""

    COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    """What unpacks to no more than a member says it holds."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self._members = {info.filename: info for info in self._zip.infolist()}
        except Exception as error:  # zipfile raises many kinds for broken directories.
            raise UserError(f"{path} is not a whole zip file ({short(str(error))}); copy it again.") from error
        self.names = set(self._members)

    def check(self, names: list[str]) -> None:
        """UserError for a member that is there twice, encrypted, or compressed in a way that is not read."""
        twice = len(self._members) < len(self._zip.infolist())
        count: dict[str, int] = {}
        for info in self._zip.infolist() if twice else ():
            count[info.filename] = count.get(info.filename, 0) + 1
        for name in names:
            info = self._members[name]
            if count.get(name, 1) > 1:
                raise UserError(f"{self.path} has two members {short(name)!r}; zip the images again.")
            if info.flag_bits & 1:
                raise UserError(
                    f"{self.path} has the encrypted member {short(name)!r}; zip the images without password."
                )
            if info.compress_type not in self.COMPRESSIONS:
                raise UserError(
                    f"{self.path} has the member {short(name)!r} in a compression that is not read; zip with deflate."
                )

    def __call__(self, name: str) -> bytes:
        """A member's content; ValueError where it is broken or larger than it may be."""
        info = self._members[name]
        if info.file_size > images.MAX_BYTES:
            raise ValueError(f"its {info.file_size:,} bytes are more than {images.MAX_BYTES:,}")
        try:
            return self._zip.read(info)
        except OSError:
            raise
        except Exception as error:  # of broken members, zipfile and zlib raise many kinds
            raise ValueError(str(error) or type(error).__name__) from error
