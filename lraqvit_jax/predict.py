"""Says what is in photographs.

python -m lraqvit_jax.predict PHOTO.jpg --workdir DIR
python -m lraqvit_jax.predict FOLDER --workdir DIR/checkpoints/int8_wads --top 3

Prints the likeliest classes of each image with their probabilities. Of a work directory, the model is the one that its
table says is to be taken, or --name. Images that cannot be read are named, and the others answered.
Exit codes: 0 done, 2 a mistake in the input, 1 a defect here.
"""

import argparse
import functools
import pathlib
from collections.abc import Iterable, Sequence

from lraqvit_jax.base import arguments, console, files
from lraqvit_jax.base.errors import LONGEST, UserError, short


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments.Parser("python -m lraqvit_jax.predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a photograph, or a folder of them")
    parser.add_argument("--workdir", required=True, help="work directory of a run, or an artefact in it")
    parser.add_argument("--name", default="", help="which artefact of the work directory, such as int8_wads")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name (5)")
    return parser.parse_args(argv)


def image_paths(names: Iterable[str]) -> list[pathlib.Path]:
    """The images: a folder stands for all that are in it or below; UserError where there is nothing."""
    from lraqvit_jax.data import layout

    paths = []
    for name in names:
        path = files.locate(name)
        inside = [path / file for file in layout.walk(path).pictures] if path.is_dir() else [path]
        if not inside:
            raise UserError(f"The folder {path} has no images; name another, or files.")
        paths += inside
    return paths


def command(argv: Sequence[str]) -> None:
    """Prints the predictions."""
    options = parse(argv)
    paths = image_paths(options.images)
    from lraqvit_jax.api import model as inference

    model = inference.load(options.workdir, options.name)
    if not isinstance(model, inference.Model):
        raise UserError(f"{options.workdir} is of a function of batches, not of images; call lraqvit_jax.load of it.")
    answers = [
        (path, classes) for path, classes in zip(paths, model.predict(paths, options.top), strict=True) if classes
    ]
    for path, classes in answers:
        console.result("\n".join([short(str(path), LONGEST), *(f"  {share:6.1%}  {name}" for name, share in classes)]))
    if len(answers) < len(paths):
        raise UserError(f"{len(paths) - len(answers):,} of {len(paths):,} images cannot be read; the others are above.")


cli = functools.partial(arguments.run, command)

if __name__ == "__main__":
    cli()
