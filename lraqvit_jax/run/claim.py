"""What binds a work directory: config.json, the configuration it belongs to, and plan.json, which a user may edit."""

import hashlib
import json
import pathlib
import shutil
from typing import Any

from lraqvit_jax import config as config_lib
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.files import MEND, read_plan, to_json


def started(directory: pathlib.Path) -> bool:
    """Whether the directory holds anything that took work to make."""
    checkpoints = directory / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def claimed(directory: pathlib.Path) -> dict[str, Any]:
    """What `config.json` says: the configuration, and the digest of the plan that was made from it."""
    written = directory / "config.json"
    if not written.exists():
        return {}
    claim = files.json_object(written, "name another work directory")
    if not isinstance(claim.get("config", {}), dict):
        raise UserError(f"{written} has no configuration; name another work directory.")
    return claim


def check_same(config: Config, directory: pathlib.Path) -> None:
    """Raises UserError where results in the directory belong to another configuration."""
    before = claimed(directory).get("config")
    if not started(directory):
        return
    if before is None:
        raise UserError(f"{directory} holds checkpoints but no config.json to tell whose; name another work directory.")
    old, new = (config_lib.filled(config_lib.leaves(fields)) for fields in (before, config.to_dict()))
    if old["class_names"] and not config.class_names:
        raise UserError(
            f"{directory} has the class names of {old['class_names']}; name that file in class_names again, or another."
        )
    for name in sorted({*old, *new}):
        if not {name, name.split(".")[0]} & set(config_lib.FREE) and old.get(name) != new.get(name):
            raise UserError(
                f"{directory} belongs to another config: {name} was {old.get(name)!r} and is {new.get(name)!r}; "
                "name another work directory or put the field back."
            )


def write(directory: pathlib.Path, config: Config, plan: plan_lib.Plan, provisional: bool = False) -> None:
    """Writes config.json and plan.json. A plan that the user edited stays as it is."""
    text = _plan_text(plan)
    try:
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        written = directory / "plan.json"
        kept, before = edited(directory), claimed(directory)
        if not written.exists() or read_plan(written) != plan:
            files.write_atomically(written, text)
        claim = {"config": config.to_dict(), "plan_sha256": _digest(text), "provisional": provisional}
        if kept:
            claim["plan_sha256"] = before.get("plan_sha256", "")
        files.write_atomically(directory / "config.json", json.dumps(claim, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"The work directory {directory} cannot be written ({error}); name another.") from error


def _sweep(directory: pathlib.Path) -> None:
    """Deletes what a killed run was writing: artefacts and files get their names when they are whole."""
    for path in (directory / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path)
    for folder in (directory, directory / "export"):
        for path in folder.glob(f".*{files.UNFINISHED}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def edited(directory: pathlib.Path) -> bool:
    """Whether plan.json is no longer what the configuration gave."""
    written = directory / "plan.json"
    return written.exists() and claimed(directory).get("plan_sha256") != _digest(files.text(written, MEND))


def _plan_text(plan: plan_lib.Plan) -> str:
    return json.dumps(to_json(plan), indent=1) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
