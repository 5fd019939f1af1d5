"""Parses command lines of `lraqvit_jax.main` and `lraqvit_jax.bench` for real, and runs nothing.

Reads a JSON list of word lists, and prints a JSON list of what is wrong with each, "" for nothing. A process of its
own, without JAX: absl keeps its flags in one place, and each line gets a fork.
"""

import json
import os
import sys
from collections.abc import Sequence

from lraqvit_jax import bench, config, main
from lraqvit_jax.base.errors import UserError


def parse(words: Sequence[str]) -> None:
    """Raises UserError for a flag, field, stage or measurement that there is not, and a config file that is none."""
    sys.argv = ["main", *words[1:]]  # ml_collections looks there for fields.
    rest = main.parse(sys.argv)[1:]
    if words[0] == "lraqvit_jax.bench":
        if len(rest) != 1 or rest[0] not in bench.names():
            raise UserError(f"there is no measurement {rest}")
    elif rest:
        raise UserError(f"{rest} are no flags")
    if main.CONFIG.value is None:
        return
    fields = main.CONFIG.value.to_dict()
    if config.parse_function(fields):
        return
    for role in ("train", "eval"):
        fields["data"][role] = fields["data"][role] or "folder:images"
    config.parse(fields)
    for name in main.flags.FLAGS.stages or ():
        if name not in config.STAGES:
            raise UserError(f"there is no stage {name!r}")


def apart(words: Sequence[str]) -> str:
    """What is wrong, found in a fork of this process."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.wait()
        return said
    said = "it could not be parsed"
    try:
        parse(words)
        said = ""
    except UserError as error:
        said = str(error)
    finally:
        os.write(writer, said.encode())
        os._exit(0)


if __name__ == "__main__":
    print(json.dumps([apart(words) for words in json.load(sys.stdin)]))
