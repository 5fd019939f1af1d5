"""python -m lraqvit_jax.bench lowrank --config configs/vit_tiny_lowrank.py --workdir DIR"""

import importlib
import pkgutil
from collections.abc import Sequence

from absl import logging

from lraqvit_jax import bench, main, processes
from lraqvit_jax.errors import UserError, nearest


def command(argv: Sequence[str]) -> None:
    """Runs the measurement that the command line names."""
    logging.set_verbosity(logging.WARNING)
    names = [one.name for one in pkgutil.iter_modules(bench.__path__) if not one.name.startswith("_")]
    if len(argv) != 2 or argv[1] not in names:
        wrong = argv[1] if len(argv) > 1 else ""
        raise UserError(f"There is no measurement {wrong!r}; {nearest(wrong, names)}")
    config, workdir = main.given()
    main.join()
    with processes.alone(workdir):
        importlib.import_module(f"lraqvit_jax.bench.{argv[1]}").run(config, workdir)


if __name__ == "__main__":
    main.cli(command)
