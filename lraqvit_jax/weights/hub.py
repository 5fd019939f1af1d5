"""Files by local path or by Hugging Face hub id, through huggingface_hub with its cache and offline mode."""

import contextlib
import pathlib
from collections.abc import Sequence

from lraqvit_jax.base import files as files_lib
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.weights import tensors


def find(name: str, files: Sequence[str], also: Sequence[str] = ()) -> pathlib.Path:
    """The local path of a weight file.

    Args:
        name: a file, a directory that holds one of `files`, or a hub id with an optional "@REVISION".
        files: which to look for in a directory or a hub repository; the first is fetched, and config.json with it.
        also: fetched beside it, where the hub repository has them.

    Raises:
        UserError: nothing there, or the hub cannot be reached.
    """
    path = files_lib.locate(name)
    if path.is_dir():
        inside = next((path / file for file in files if (path / file).is_file()), None)
        if inside is None:
            raise UserError(f"The directory {name} has none of {', '.join(files)}; name the weight file.")
        return inside
    if path.exists() or path.suffix in {".npz", ".safetensors"} | tensors.PICKLES or name.count("/") != 1:
        return path
    return _download(name, files, also)


def _download(name: str, files: Sequence[str], also: Sequence[str]) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        huggingface_hub.hf_hub_download(repository, "config.json", revision=revision or None)
        for file in also:
            with contextlib.suppress(EntryNotFoundError):
                huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, files[0], revision=revision or None))
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} is no file here and the hub does not give it ({first}); correct the path, or download it first."
        ) from error
