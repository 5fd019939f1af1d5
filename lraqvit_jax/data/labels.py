"""Tables that say which file has which label: labels.csv, Kaggle's train.csv, Roboflow's _classes.csv, Hugging Face's
metadata.csv and metadata.jsonl.

Comma, semicolon, tab or bar between the columns; UTF-8, or UTF-16 with its mark. A label is a number or a name; a
column of each may be there; or each class has a column of zeros and ones. Other columns are left alone.
"""

import csv
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.base.files import MARKS
from lraqvit_jax.data import layout

MAX_BYTES = 2**28
"""Of a table. Read, it takes about twenty times its size."""
FIRST = 100
"""Rows that are looked at to tell what a table is about."""
MAX_CLASSES = 2**17
"""Labels are below it (ImageNet-21k has 21,841 classes): a name is kept for each."""
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
FILE = (
    *("file", "filename", "filepath", "filepaths", "files", "filenames", "path", "paths", "imagepath", "imgpath"),
    *("imagefile", "imagefilename", "imagename", "imgname", "image", "img", "images", "picture", "photo", "fname"),
    *("imageid", "imgid", "fileid", "idcode", "id"),
)
"""What the column of files is called, the likeliest first; letters and digits of the header, in lower case."""
LABEL = (
    *("label", "labels", "class", "classes", "category", "target", "classname", "labelname", "categoryname"),
    *("classlabel", "groundtruth", "species", "breed", "variety", "diagnosis", "dx", "classid", "labelid"),
    *("categoryid", "targetid", "classindex", "classidx", "labelindex", "labelidx"),
)
"""Likewise of labels, numbers or names."""
SPLIT = ("split", "dataset", "subset", "partition", "set")
"""Likewise of what says to which of `layout.SPLITS` a file belongs."""
WORDS = ("text", "caption", "captions", "prompt", "description", "width", "height", "url", "index", "unnamed")
"""Columns that are no labels, whatever else is missing."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


class Labels(NamedTuple):
    """Files, the label of each, and the name of every class up to the largest label.

    Attributes:
        numbered: whether the labels are numbers of the table; if not, they count its names, sorted.
        splits: of each file, which of `layout.SPLITS` the table says; () where it says nothing.
        nothing: files that a table with a column for each class says to be of none.
    """

    files: list[str]
    labels: list[int]
    names: list[str]
    numbered: bool = True
    splits: Sequence[str] = ()
    nothing: Sequence[str] = ()


class Row(NamedTuple):
    """A row of a table, by its headers, and where it stands."""

    where: str
    cells: dict[str, str]


class Columns(NamedTuple):
    """Headers of a table; "" where there is none."""

    file: str
    labels: list[str]
    classes: list[str]
    split: str


def read(path: pathlib.Path) -> Labels:
    """Reads a table; UserError names the first line that is wrong."""
    rows = _rows(path)
    columns = _columns(rows)
    if not columns:
        raise UserError(f"{path} needs a header with the columns file and label, and at least one row.")
    return _labels(rows, columns)


def is_labelled(path: pathlib.Path) -> bool:
    """Whether a table has columns of files and labels, by its first rows."""
    try:
        return _columns(_rows(path, FIRST)) is not None
    except UserError:
        return False


def first_files(path: pathlib.Path) -> list[str]:
    """What the first rows of such a table name."""
    rows = _rows(path, FIRST)
    columns = _columns(rows)
    return [file for row in rows if columns and (file := row.cells[columns.file])]


def _labels(rows: Sequence[Row], columns: Columns) -> Labels:
    rows = list(rows)
    files = [_file(row, columns.file) for row in rows]
    _check_once(files, rows)
    if columns.classes:
        labels, names, numbered = [_one_hot(row, columns.classes) for row in rows], columns.classes, False
    else:
        labels, names, numbered = _numbers_or_names(rows, columns.labels)
    splits = [layout.split_of(row.cells.get(columns.split, "")) for row in rows] if columns.split else []
    kept = [place for place, label in enumerate(labels) if label >= 0]
    return Labels(
        [files[place] for place in kept],
        [labels[place] for place in kept],
        names,
        numbered,
        [splits[place] for place in kept] if splits else (),
        [file for file, label in zip(files, labels, strict=True) if label < 0],
    )


def _numbers_or_names(rows: Sequence[Row], columns: Sequence[str]) -> tuple[list[int], list[str], bool]:
    """(labels, names of classes, whether the table numbers them). The first column of numbers counts, and the first of
    names."""
    kinds = {column: _is_numeric(row.cells[column] for row in rows) for column in columns}
    numeric = next((column for column in columns if kinds[column]), "")
    textual = next((column for column in columns if not kinds[column]), "")
    if not numeric:
        given = [row.cells[textual] for row in rows]
        for name, row in zip(given, rows, strict=True):
            _check_label(bool(name), row)
        names = sorted(set(given))
        place = {name: number for number, name in enumerate(names)}
        return [place[name] for name in given], names, False
    labels, called = [_number(row, numeric) for row in rows], dict[int, str]()
    for label, row in zip(labels, rows, strict=True):
        name = row.cells[textual] if textual else ""
        if name and called.setdefault(label, name) != name:
            raise UserError(
                f"{row.where} calls the class {label} {short(name)!r}, and a line above {short(called[label])!r}; "
                "correct one."
            )
    return labels, [called.get(label, str(label)) for label in range(max(labels) + 1)], True


def _is_numeric(cells: Iterable[str]) -> bool:
    """Whether all that is there are numbers, of whatever kind."""
    return all(cell.isnumeric() or NUMBER.fullmatch(cell) for cell in cells if cell)


def _number(row: Row, column: str) -> int:
    match = re.fullmatch(r"([0-9]+)(\.0*)?", row.cells[column])
    _check_label(bool(match), row)
    digits = match[1].lstrip("0") or "0" if match else ""
    if len(digits) > 9 or int(digits) >= MAX_CLASSES:
        raise UserError(
            f"{row.where} has the label {short(digits)}; classes are numbered from 0, to {MAX_CLASSES - 1:,}."
        )
    return int(digits)


def _check_label(right: bool, row: Row) -> None:
    if not right:
        raise UserError(f"{row.where} needs a file and a label, a whole number from 0 or a name; mend it.")


def _one_hot(row: Row, classes: Sequence[str]) -> int:
    """The class whose column is 1; -1 where none is."""
    ones = [place for place, column in enumerate(classes) if float(row.cells[column] or 0) == 1]
    if len(ones) > 1:
        raise UserError(
            f"{row.where} has several classes, {short(classes[ones[0]])!r} and {short(classes[ones[1]])!r}; give each "
            "file one."
        )
    return ones[0] if ones else -1


def _file(row: Row, column: str) -> str:
    file = row.cells[column]
    _check_label(bool(file), row)
    if file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file) or re.match("[A-Za-z]:", file):
        raise UserError(f"{row.where} names {short(file)!r}, which leads out of the folder of images; mend it.")
    return file


def _check_once(files: Sequence[str], rows: Sequence[Row]) -> None:
    seen = set()
    for file, row in zip(files, rows, strict=True):
        if file in seen:
            raise UserError(f"{row.where} names {short(file)!r} again; take one out.")
        seen.add(file)


def _key(header: str) -> str:
    return "".join(letter for letter in header.lower() if letter.isalnum())


def _columns(rows: Sequence[Row]) -> Columns | None:
    """Which headers say what; None where nothing says the files, or nothing the labels."""
    if not rows:
        return None
    headers = [header for header in rows[0].cells if _key(header) and _key(header).rstrip("0123456789") not in WORDS]
    by_key = {_key(header): header for header in headers}
    pictures = [header for header in headers if layout.is_picture(rows[0].cells[header])]
    usual = [by_key[key] for key in FILE if key in by_key]
    unknown = [header for header in headers if _key(header) not in (*LABEL, *SPLIT)]
    file = next((names[0] for names in (usual, pictures, unknown) if len(names) == 1 or (names and names is usual)), "")
    split = next((by_key[key] for key in SPLIT if key in by_key and by_key[key] != file), "")
    others = [header for header in headers if header not in (file, split)]
    labels = [by_key[key] for key in LABEL if by_key.get(key) in others] or (others if len(others) == 1 else [])
    classes = [] if labels or len(others) < 2 or not _are_classes(rows, others) else others
    return Columns(file, labels, classes, split) if file and (labels or classes) else None


def _are_classes(rows: Sequence[Row], headers: Sequence[str]) -> bool:
    """Whether columns hold nothing but zeros and ones."""
    return all(re.fullmatch(r"([01](\.0*)?)?", row.cells[header]) for row in rows for header in headers)


def _rows(path: pathlib.Path, count: int | None = None) -> list[Row]:
    """All rows of a table, or the first `count`."""
    text = _text(path)
    if path.suffix.lower() != ".jsonl":
        return list(itertools.islice(_table_rows(text, path), count))
    rows = list(itertools.islice(_json_rows(text, path), count))
    names = dict.fromkeys(name for row in rows for name in row.cells)
    return [Row(row.where, {name: row.cells.get(name, "") for name in names}) for row in rows]


def _json_rows(text: str, path: pathlib.Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} cannot be read as JSON ({short(str(error))}); mend it.") from error
        if not isinstance(parsed, Mapping):
            raise UserError(f"{where} is not a JSON object; mend it.")
        yield Row(where, {name: _cell(value) for name, value in parsed.items()})


def _cell(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _table_rows(text: str, path: pathlib.Path) -> Iterator[Row]:
    first, _, rest = text.partition("\n")
    skipped = 1 if re.fullmatch(r"sep=.\s*", first) else 0  # of Excel
    text = rest if skipped else text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    header = list[str]()
    try:
        for written in reader:
            cells = [cell.strip() for cell in written]
            if any(cells) and (header or _without_header(cells)):
                header = header or ["file", "label", *(f"unnamed {place}" for place in range(2, len(cells)))]
                padded = cells + [""] * (len(header) - len(cells))
                yield Row(f"Line {reader.line_num + skipped} of {path}", dict(zip(header, padded, strict=False)))
            elif any(cells):
                header = _header(cells, path)
    except csv.Error as error:
        where = f"Line {reader.line_num + skipped} of {path}"
        raise UserError(f"{where} is not a line of a table ({error}); mend it.") from error


def _without_header(cells: Sequence[str]) -> bool:
    """Whether the first row of a table is a file and its label already."""
    return len(cells) > 1 and layout.is_picture(cells[0])


def _header(cells: list[str], path: pathlib.Path) -> list[str]:
    named = [name for name in cells if name]
    if len(set(named)) < len(named):
        raise UserError(f"{path} has two columns of one name; the columns file and label are needed once each.")
    return cells


def _text(path: pathlib.Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes, more than a table may have ({MAX_BYTES:,}); split the data.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); look after the disk.") from error
    try:
        text = content.decode(MARKS.get(content[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error.reason}); save it in that encoding.") from error
    if "\0" in text:
        raise UserError(
            f"{path} holds NUL bytes, so it is not text, or it is UTF-16 without its mark; save it in UTF-8."
        )
    return text


def _delimiter(text: str) -> str:
    """Of the header's columns: that which the first line has most of, a blank where it has none."""
    header = text.partition("\n")[0]
    letter = max(",;\t|", key=header.count)
    return letter if letter in header else " "
