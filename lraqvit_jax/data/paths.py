"""Which file a table means: the names that people write into tables, and the files that there are."""

import collections
import pathlib
from collections.abc import Iterable, Sequence

from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import layout


class Paths:
    """Files by the names that a table may give them.

    A table may leave out the folder of the pictures or write more folders in front, leave out the suffix, and write
    in another case; what is there to the letter comes first.

    Attributes:
        pictures: files that are pictures by their suffix.
    """

    def __init__(self, names: Iterable[str], prefixes: Sequence[str]) -> None:
        """`names`: of files below a folder, with / between. `prefixes`: what may be left out, the likeliest first."""
        self._names, self._prefixes = set(names), prefixes
        self.pictures = {name for name in self._names if layout.is_picture(name.rpartition("/")[2])}
        self._by_name, self._by_stem = (collections.defaultdict(list) for _ in range(2))
        for name in sorted(self.pictures):
            last = name.rpartition("/")[2].lower()
            self._by_name[last].append(name)
            self._by_stem[last.rpartition(".")[0]].append(name)

    def find(self, written: Sequence[str], table: pathlib.Path) -> tuple[list[str], list[str]]:
        """(files that are meant, names that are none's).

        Raises:
            UserError: a name that several files bear, or two names of one file.
        """
        meant = {name: self._find(name.replace("\\", "/").removeprefix("./"), name, table) for name in written}
        missing = [name for name, file in meant.items() if not file]
        owner: dict[str, str] = {}
        for name, file in meant.items():
            if file and owner.setdefault(file, name) != name:
                raise UserError(f"{table} names {short(owner[file])!r} and {short(name)!r}, one file; take one out.")
        return [file for file in meant.values() if file], missing

    def _find(self, name: str, written: str, table: pathlib.Path) -> str:
        for prefix in self._prefixes:
            if prefix + name in self._names:
                return prefix + name
        last = name.rpartition("/")[2].lower()
        candidates = self._by_name[last] if layout.is_picture(last) else self._by_stem[last]
        candidates = [file for file in candidates if _agree(file, name)]
        for prefix in self._prefixes:
            close = [file for file in candidates if file.rpartition(".")[0].lower() == (prefix + _stem(name)).lower()]
            if len(close) == 1:
                return close[0]
        if len(candidates) > 1:
            raise UserError(
                f"{table} names {short(written)!r}, which may be {short(candidates[0])} or {short(candidates[1])}; "
                "write folder and suffix."
            )
        return candidates[0] if candidates else ""


def _stem(name: str) -> str:
    """The name without the suffix of a picture."""
    return name.rpartition(".")[0] if layout.is_picture(name.rpartition("/")[2]) else name


def _agree(file: str, name: str) -> bool:
    """Whether the folders of two paths agree as far as both say them, whatever the case."""
    folders = [path.lower().split("/")[-2::-1] for path in (file, name)]
    return all(first == second for first, second in zip(*folders, strict=False))
