"""labels.csv: which file has which label.

Comma, semicolon or tab between the columns; UTF-8, or UTF-16 with its mark. The columns are `file`, `label` and, where
it is there, `class_name`; others are left alone.
"""

import csv
import io
import pathlib
import re
from typing import NamedTuple

from lraqvit_jax.base.errors import UserError, short

MAX_BYTES = 2**28
"""Of a table. Read, it takes about twenty times its size."""
MAX_CLASSES = 2**17
"""Labels are below it (ImageNet-21k has 21,841 classes): a name is kept for each."""
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Labels(NamedTuple):
    """Files, the label of each, and the name of every class up to the largest label."""

    files: list[str]
    labels: list[int]
    names: list[str]


def read(path: pathlib.Path) -> Labels:
    """Reads a table; UserError names the first line that is wrong."""
    rows = csv.reader(io.StringIO(text := _text(path), newline=""), delimiter=_delimiter(text))
    files: dict[str, int] = {}
    names: dict[int, str] = {}
    try:
        header = [name.strip() for name in next(rows, [])]
        if not {"file", "label"} <= set(header) or len(set(header)) < len(header):
            raise UserError(f"{path} needs a header with the columns file and label, and at least one row.")
        for row in rows:
            if not row:
                continue
            file, label, name = _row(dict(zip(header, row, strict=False)), f"Line {rows.line_num} of {path}")
            if file in files:
                raise UserError(f"Line {rows.line_num} of {path} names {short(file)!r} again; take one out.")
            files[file] = label
            if name:
                names[label] = name
    except csv.Error as error:
        raise UserError(f"Line {rows.line_num} of {path} is no line of a table ({error}); mend it.") from error
    if not files:
        raise UserError(f"{path} needs a header with the columns file and label, and at least one row.")
    labels = list(files.values())
    return Labels(list(files), labels, [names.get(label, str(label)) for label in range(max(labels) + 1)])


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
        raise UserError(f"{path} holds NUL bytes, so it is no text, or UTF-16 without its mark; save it in UTF-8.")
    return text


def _delimiter(text: str) -> str:
    """Of the header's columns; the first line tells."""
    header = text.partition("\n")[0]
    return next((letter for letter in ",;\t" if letter in header), ",")


def _row(row: dict[str, str], where: str) -> tuple[str, int, str]:
    """(file, label, name of the class, "" for none)"""
    file, label = row.get("file", ""), row.get("label", "").strip()
    if not file or not re.fullmatch("[0-9]+", label):
        raise UserError(f"{where} needs a file and a label that is a whole number from 0; mend it.")
    if len(label) > 9 or int(label) >= MAX_CLASSES:
        raise UserError(f"{where} has the label {short(label)}; classes are numbered from 0, to {MAX_CLASSES - 1:,}.")
    if file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file) or re.match("[A-Za-z]:", file):
        raise UserError(f"{where} names {short(file)!r}, which leads out of the folder of images; mend it.")
    return file, int(label), row.get("class_name", "").strip()
