"""Measures: methods of compression side by side, and where the time goes.

    python -m lraqvit_jax.bench lowrank --config=configs/vit_tiny_lowrank.py --workdir=DIR

The same command again goes on where it stopped. Exit codes: 0 done, 2 a mistake in the input, 1 a defect here.
"""

import ast
import importlib
import pathlib
from collections.abc import Sequence

from lraqvit_jax import bench, main
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.config import Config


def command(argv: Sequence[str]) -> None:
    """Runs the measurement that the command line names."""
    if len(argv) != 2 or argv[1] not in bench.names():
        wrong = argv[1] if len(argv) > 1 else ""
        raise UserError(f"There is no measurement {wrong!r}; {nearest(wrong, bench.names())}")
    config, workdir = main.command_line()
    if not isinstance(config, Config):
        raise UserError(
            f"The measurements are of our own models, which {config.model} is none of; take another config."
        )
    from lraqvit_jax.run import lock  # and with it JAX, which no mistake above and no --help waits for

    main.join()
    with lock.alone(workdir):
        importlib.import_module(f"lraqvit_jax.bench.{argv[1]}").run(config, workdir)


def teaches() -> str:
    """What --help says: each measurement by the first line of its file, none of which is imported for it."""
    lines = [__doc__ or "", "Measurements:"]
    for name in bench.names():
        text = (pathlib.Path(bench.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        lines.append(f"  {name:<9} {first.removeprefix(f'bench {name}: ')}")
    return "\n".join(lines)


def cli() -> None:
    main.cli(command, teaches())


if __name__ == "__main__":
    cli()
