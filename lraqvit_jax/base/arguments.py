"""Command lines of the small commands: argparse, whose complaints become one sentence that names the nearest flag."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from lraqvit_jax.base import console, early
from lraqvit_jax.base.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """Shows a docstring as it is; says what is wrong in one sentence."""

    def __init__(self, prog: str, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=formatter, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            wrong = rest[0].partition("=")[0]
            raise UserError(f"{wrong} is not an argument here; {nearest(wrong, self._option_string_actions)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; --help lists what there is.")


def run(command: Callable[[Sequence[str]], None]) -> None:
    """Runs a command on the arguments of this process: a user's mistake is one sentence and exit code 2. Who reads no
    further, as `head` does, ends it without a word."""
    try:
        early.over()
        command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # What is left is written nowhere.
        sys.exit(1)
    except KeyboardInterrupt:
        console.error("Interrupted.")
        sys.exit(130)
    except UserError as error:
        console.error(str(error))
        sys.exit(2)
