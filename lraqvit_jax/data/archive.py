"""images.zip: read one member at a time, in memory."""

import pathlib
import zipfile

from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import images, layout


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
        self.names = [name for name in self._members if not any(map(layout.is_litter, name.rstrip("/").split("/")))]

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
