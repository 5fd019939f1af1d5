"""Files by local path or by Hugging Face hub id, through huggingface_hub with its cache and offline mode."""

import contextlib
import pathlib
from collections.abc import Sequence

from lraqvit_jax.base import files as files_lib
from lraqvit_jax.base.errors import UserError, reason, short
from lraqvit_jax.base.version import VERSION
from lraqvit_jax.weights import tensors

WEIGHTS = "model.safetensors"


def checked(name: str, revision: bool = True) -> str:
    """USER/NAME, with an "@REVISION" where that may be; UserError where no repository can have that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository = name.partition("@")[0] if revision else name
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{short(name)!r} names no repository ({reason(error)}); write USER/NAME.") from error
    if repository.count("/") != 1:
        raise UserError(f"{short(name)!r} does not say whose repository it is; write USER/NAME.")
    return name


def push(name: str, folder: pathlib.Path, *, private: bool = False) -> str:
    """Makes the repository where there is none, and puts the files of a folder there.

    Args:
        name: USER/NAME.
        folder: of the files.
        private: whether others cannot see a repository that is new.

    Returns:
        its address; "" where no token is there to push with.

    Raises:
        UserError: the Hub cannot be reached, or does not take it.
    """
    import huggingface_hub

    if not huggingface_hub.get_token():
        return ""
    api = huggingface_hub.HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"lraqvit_jax {VERSION}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"The Hub does not take {name} ({reason(error)}); {folder} is whole: run --stages=share again, or "
            f"hf upload {name} {folder}"
        ) from error
    return address


def find(name: str, files: Sequence[str], also: Sequence[str] = (), *, pickles: bool = False) -> pathlib.Path:
    """The local path of a weight file.

    Args:
        name: a file, a directory that holds one of `files`, or a hub id with an optional "@REVISION".
        files: which to look for in a directory or a hub repository; the first that is there is fetched, and config.json
            with it. An index is fetched with the shards that it lists.
        also: fetched beside it, where the hub repository has them.
        pickles: whether a pickle in a directory is found too, for its reader to refuse it with what converts it.

    Raises:
        UserError: nothing there, or the hub cannot be reached.
    """
    path = files_lib.locate(name)
    if path.is_dir():
        inside = [path / file for file in files if (path / file).is_file()]
        inside += sorted(file for file in path.iterdir() if pickles and file.suffix in tensors.PICKLES)
        if not inside:
            raise UserError(f"The directory {name} has none of {', '.join(files)}; name the weight file.")
        return inside[0]
    return _download(name, files, also) if is_id(name) else path


def is_id(name: str) -> bool:
    """Whether a name is none of a file here, and may be that of a hub repository."""
    path = files_lib.locate(name)
    suffixes = {".npz", ".safetensors", ".json"} | tensors.PICKLES
    return not (path.exists() or path.suffix in suffixes or name.count("/") != 1)


def _download(name: str, files: Sequence[str], also: Sequence[str]) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = name.partition("@")

    def fetch(file: str) -> pathlib.Path:
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))

    try:
        fetch("config.json")
        for file in also:
            with contextlib.suppress(EntryNotFoundError):
                fetch(file)
        for file in files[:-1]:
            with contextlib.suppress(EntryNotFoundError):
                return fetch(file)
        path = fetch(files[-1])
        for shard in tensors.shards(path) if path.name == tensors.INDEX else ():
            fetch(shard.name)
        return path
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} is not a file here and the hub does not give it ({first}); correct the path, or download it."
        ) from error


def folder_of(name: str) -> pathlib.Path | None:
    """Where huggingface_hub keeps the files of a repository whose weights were fetched, README.md with them where it
    can be had; None where nothing is kept."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    found = None
    for file in ("config.json", "README.md"):
        with contextlib.suppress(OSError, ValueError):
            found = huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
    return pathlib.Path(found).parent if found else None
