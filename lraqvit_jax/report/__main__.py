"""Makes the report of a work directory, or of several side by side, from their files alone.

python -m lraqvit_jax.report DIR
python -m lraqvit_jax.report DIR DIR ... --output comparison.html

One directory gives DIR/report.html, several comparison.html in the current one, unless --output names another file. The
examples and singular values are those that the stage report kept. Exit codes: 0 done, 2 a mistake in the input, 1 a
defect here.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from lraqvit_jax import files, metrics
from lraqvit_jax.errors import UserError, storage
from lraqvit_jax.weights.__main__ import Parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m lraqvit_jax.report", __doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a work directory, as --workdir named it")
    parser.add_argument("--output", default="", metavar="FILE", help="where the page goes")
    return parser.parse_args(argv)


def make(directories: Sequence[str], output: str = "") -> pathlib.Path:
    """Writes the page, and returns where.

    Raises:
        UserError: a directory that does not exist, has no results, is named twice, or a file that cannot be read.
    """
    from lraqvit_jax.report import page, read  # matplotlib takes a second to import

    paths = [files.locate(name) for name in directories]
    twice = next((path for index, path in enumerate(paths) if path.resolve() in map(_resolved, paths[:index])), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; name each work directory once.")
    runs = read.named([read.run(path) for path in paths], paths)
    target = files.locate(output) if output else paths[0] / "report.html" if len(paths) == 1 else None
    target = pathlib.Path("comparison.html") if target is None else target
    if not target.absolute().parent.is_dir() or target.is_dir():
        raise UserError(f"--output {target} is no file in a directory that exists; correct it.")
    metrics.write_atomically(target, page.one(runs[0]) if len(runs) == 1 else page.several(runs))
    return target


def _resolved(path: pathlib.Path) -> pathlib.Path:
    return path.resolve()


def cli() -> None:
    """Entry point: turns a user's mistake into one sentence and exit code 2."""
    try:
        options = parse(sys.argv[1:])
        print(make(options.directories, options.output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not (sentence := storage(error)):
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()
