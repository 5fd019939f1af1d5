"""Says what pretrained weights are, to see a wrong checkpoint before it is compressed.

python -m lraqvit_jax.weights timm:deit_tiny_patch16_224.safetensors
python -m lraqvit_jax.weights huggingface:DIR --num_classes 10 --image_size 160
python -m lraqvit_jax.weights convert checkpoint.pth

Prints the model that the tensors belong to, then mean, std and largest magnitude of every parameter. Exit codes:
0 done, 2 a mistake in the input, 1 a defect here. `convert` makes a pickle of PyTorch safetensors, with torch.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lraqvit_jax import models, weights
from lraqvit_jax.base import arguments, trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.plan.records import dense
from lraqvit_jax.weights import Pretrained, convert

NAMES = 5
"""How many class names are shown."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    if argv[:1] == ["convert"]:
        return convert.parse(argv[1:])
    parser = arguments.Parser("python -m lraqvit_jax.weights", __doc__)
    parser.add_argument("source", help="timm:..., huggingface:..., big_vision:... or artifact:...")
    parser.add_argument("--num_classes", type=int, default=0, help="0 keeps the head; another number makes a new one")
    parser.add_argument("--image_size", type=int, default=0, help="0 keeps the size; another resamples positions")
    options = parser.parse_args(argv)
    for name in ("num_classes", "image_size"):
        if getattr(options, name) < 0:
            raise UserError(
                f"--{name} is {getattr(options, name)}; give a positive number, or 0 to keep what there is."
            )
    return options


def describe(pretrained: Pretrained) -> str:
    """What is known of the weights, a line each."""
    spec = models.spec(pretrained.model, num_classes=pretrained.num_classes, image_size=pretrained.preprocess.size)
    flat, pre = trees.flatten(pretrained.params), pretrained.preprocess
    names = ", ".join(pretrained.class_names[:NAMES] + ["..."] * (len(pretrained.class_names) > NAMES))
    flops = total_cost(dense(spec.layers), spec.layers).flops
    lines = {
        "source": pretrained.source,
        "sha256": pretrained.sha256,
        "model": f"{pretrained.model}, {spec.blocks} blocks",
        "image size": f"{pre.size} x {pre.size}",
        "classes": f"{pretrained.num_classes}{': ' if names else ''}{names}",
        "preprocess": f"{_crop(pre)}, mean {_row(pre.mean)}, std {_row(pre.std)}",
        "parameters": f"{sum(np.size(value) for value in flat.values()) / 1e6:.3f} M in {len(flat)} tensors",
        "linear layers": f"{flops / 1e9:.3f} GFLOPs an image, 2 for a multiply-accumulate",
        "LayerNorm": f"epsilon {spec.norm_eps:g}",
        "GELU": spec.gelu,
    }
    return "\n".join(f"{name:<14} {value}" for name, value in lines.items())


def _crop(pre: Preprocess) -> str:
    squash = "" if pre.crop_mode == "center" else f"{pre.crop_mode}, "
    return f"{squash}crop {pre.crop_pct:.3g}, {pre.interpolation}"


def _row(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def table(params: Mapping[str, Any]) -> str:
    """Statistics of every tensor, in the order of the names with their numbers counted; NaN and infinity are left out
    of them and reported below."""
    flat = trees.flatten(params)
    width = max(len(path) for path in flat)
    lines = [f"{'parameter':<{width}} {'shape':>13} {'dtype':>8} {'mean':>10} {'std':>10} {'max |x|':>10}"]
    broken = []
    for path in sorted(flat, key=_natural):
        value = np.asarray(flat[path])
        finite = value[np.isfinite(value)].astype(np.float64)
        if finite.size < value.size:
            broken.append(f"{path} ({value.size - finite.size} of {value.size})")
        numbers = (finite.mean(), finite.std(), np.abs(finite).max()) if finite.size else (np.nan,) * 3
        shape = "x".join(map(str, value.shape))
        lines.append(f"{path:<{width}} {shape:>13} {value.dtype!s:>8} " + " ".join(f"{x:>10.3g}" for x in numbers))
    if broken:
        lines.append(f"NaN or infinite values in {', '.join(broken)}: these weights are broken.")
    return "\n".join(lines)


def _natural(path: str) -> list[tuple[str, int]]:
    """Sorts blocks_2 before blocks_10."""
    parts = (name.rpartition("_") for name in path.split("/"))
    return [(stem, int(number)) if number.isdigit() else (stem + number, 0) for stem, _, number in parts]


def command(argv: Sequence[str]) -> None:
    """Prints what is known, or converts a pickle."""
    options = parse(argv)
    if argv[:1] == ["convert"]:
        convert.command(argv[1:])
        return
    pretrained = weights.read(options.source, num_classes=options.num_classes, image_size=options.image_size)
    print(f"{describe(pretrained)}\n\n{table(pretrained.params)}")


cli = functools.partial(arguments.run, command)

if __name__ == "__main__":
    cli()
