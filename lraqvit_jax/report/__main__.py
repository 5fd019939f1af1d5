"""Makes the report of a work directory, or of several side by side, from their files alone.

python -m lraqvit_jax.report DIR
python -m lraqvit_jax.report DIR DIR ... --output comparison.html

One directory gives DIR/report.html, several comparison.html in the current one, unless --output names another file. The
examples and singular values are those that the stage report kept. Exit codes: 0 done, 2 a mistake in the input, 1 a
defect here.
"""

import argparse
import functools
import pathlib
from collections.abc import Sequence

from lraqvit_jax.base import arguments, console, files
from lraqvit_jax.base.errors import UserError, storage


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments.Parser("python -m lraqvit_jax.report", __doc__)
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
    places = [path.resolve() for path in paths]
    for index, path in enumerate(paths):
        if places[index] in places[:index]:
            raise UserError(f"{path} is named twice; name each work directory once.")
    runs = read.named([read.run(path) for path in paths], paths)
    target = files.locate(output) if output else paths[0] / "report.html" if len(paths) == 1 else None
    target = pathlib.Path("comparison.html") if target is None else target
    if not target.absolute().parent.is_dir() or target.is_dir():
        raise UserError(f"--output {target} is not a file in a directory that exists; correct it.")
    files.write_atomically(target, page.one(runs[0]) if len(runs) == 1 else page.several(runs))
    return target


def command(argv: Sequence[str]) -> None:
    """Makes the page, and prints where it is."""
    options = parse(argv)
    try:
        console.result(make(options.directories, options.output))
    except OSError as error:
        if not (sentence := storage(error)):
            raise
        raise UserError(sentence) from error


cli = functools.partial(arguments.run, command)

if __name__ == "__main__":
    cli()
