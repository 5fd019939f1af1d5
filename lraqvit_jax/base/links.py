"""Paths for libraries that take some letters of a path for a pattern."""

import hashlib
import os
import pathlib
import re
import tempfile

from lraqvit_jax.base.errors import UserError

PATTERN = re.compile(r"[*?\[\]\\]")
"""Letters that `glob` gives a meaning to, whichever part of the path they stand in."""


def plain(path: pathlib.Path) -> pathlib.Path:
    """The path; where it, or a folder above it, has letters of a pattern, through a link that has none.

    Orbax looks for its files by a pattern that begins with the whole path, and leaves out what it does not find. The
    link's name follows from the folder's, so that all processes of a run use the same; it stays, a few bytes in the
    system's folder for temporary files.

    Raises:
        UserError: the link cannot be made.
    """
    path = path.absolute()
    folder = next((folder for folder in (path, *path.parents) if PATTERN.search(folder.name)), None)
    if folder is None:
        return path
    link = _links() / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(mode=0o700, exist_ok=True)
        if link.parent.stat().st_uid != os.getuid():
            raise PermissionError(f"{link.parent} belongs to another user")
        _link(link, folder)
    except OSError as error:
        raise UserError(
            f"{folder} has letters of a pattern in its name, and a link to it cannot be made ({error}); rename it."
        ) from error
    return link / path.relative_to(folder)


def _links() -> pathlib.Path:
    return pathlib.Path(tempfile.gettempdir()) / f"lraqvit_jax-{os.getuid()}"


def _link(link: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes the link, where none of this run has done so; FileExistsError where it leads elsewhere."""
    try:
        link.symlink_to(folder, target_is_directory=True)
    except FileExistsError:
        if link.readlink() != folder:
            raise
