"""What compression does to a real model, in the numbers of its task, a row for each way to make it small.

    python -m tests.real MODEL --weights DIR --data DIR --budget 0.75 [--bits 8] [--steps 200]

Every row keeps the same share of the parameters of the same kernels: those between the first product and the last one.
A row of integers, or of training, goes on from the row of floats before it, and its seconds are those since then.
Weights and data are named in each model's file; the libraries it needs besides, in requirements-foreign.txt.
"""

import argparse
import importlib
import pathlib
import resource
import sys
import time

from lraqvit_jax.base import console
from tests.real.methods import METHODS, Options

MODELS = {
    "saliency": ("saliency", "case", 100),
    "minilm": ("minilm", "case", 500),
    "smollm2": ("smollm2", "case", 16),
    "smollm2-logits": ("smollm2", "logits_case", 16),
    "whisper": ("whisper", "case", 19),
}
"""Where each model is, and how many examples it is calibrated on."""


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.real", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the data sets' folders")
    parser.add_argument("--budget", type=float, default=0.75, help="share of the kernels' parameters to keep")
    parser.add_argument("--bits", type=int, default=0, help="of integers, in rows of their own")
    parser.add_argument("--method", choices=("plain", "pivoted"), default="plain", help="of the baselines' pairs")
    parser.add_argument("--metric", default="", help="what compress keeps, in place of the model's")
    parser.add_argument("--steps", type=int, default=0, help="of distillation, in rows of their own")
    parser.add_argument("--rate", type=float, default=0.0, help="of learning in these, the highest; 0 has one found")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for what was compressed, read where it is there")
    parser.add_argument("--rows", nargs="*", choices=METHODS, default=list(METHODS), help="which rows")
    parser.add_argument("--examples", type=int, default=0, help="to calibrate on; 0 is the model's own number")
    parser.add_argument("--limit", type=int, default=0, help="examples to evaluate on; 0 is all")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    given = arguments(argv)
    console.set_level(console.QUIET)
    module, make, examples = MODELS[given.model]
    build = getattr(importlib.import_module(f"tests.real.{module}"), make)
    case = build(given.weights, given.data, given.examples or examples, given.limit)
    options = Options(given.budget, given.bits, given.method, given.metric, given.steps, given.rate, given.keep)
    rows = [name for name in given.rows if given.bits or not name.endswith("+int")]
    rows = [name for name in rows if given.steps or not name.startswith("trained")]
    print(f"{given.model}, {given.budget:g} of the kernels' parameters; calibrated on {case.calibrated_on}", flush=True)
    head: list[str] = []
    for name in rows:
        started = time.perf_counter()
        small = METHODS[name](case, options)
        made = time.perf_counter()
        measured = case.evaluate(small)
        taken = time.perf_counter() - made
        if not head:
            head = ["method", "parameters", "bytes", "MACs", *measured, "s to make", "s to measure", "GB at most"]
            print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
        numbers = [f"{small.parameters:,}", f"{small.nbytes:,}", f"{small.macs:,}"]
        numbers += [f"{value:.4f}" if isinstance(value, float) else str(value) for value in measured.values()]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        numbers += [f"{made - started:.0f}", f"{taken:.0f}", f"{peak:.1f}"]
        print(f"| {name} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
