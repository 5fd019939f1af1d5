"""Where an ONNX file parts from its model: both on the same images, layer by layer.

python -m lraqvit_jax.export.compare DIR/checkpoints/int8_wads
python -m lraqvit_jax.export.compare DIR/checkpoints/int8_wads --onnx=FILE --images=folder:PHOTOS --count=8

Without --onnx, the artefact is exported afresh; without --images, they are those of its calibration. Prints, for every
linear layer, the largest difference of its output over the largest output, and names the layer where that jumps. What
one layer gets wrong, all layers behind it get; where values are rounded to integers, one that lies on the edge between
two differs now and then, by up to a step, and that is no fault. Exit codes: 0 done, 2 a mistake in the input, 1 a
defect here.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jaxtyping import Float
from onnx import TensorProto, helper

from lraqvit_jax import checkpoint, trees
from lraqvit_jax.config import TARGETS
from lraqvit_jax.data import pipeline, sources
from lraqvit_jax.errors import UserError
from lraqvit_jax.export import linear
from lraqvit_jax.export import onnx as export
from lraqvit_jax.layers import Linear
from lraqvit_jax.weights.__main__ import Parser

NOISE = {False: 1e-5, True: 1e-2}
"""Differences below count as equal: of float models, and where values are rounded to integers."""


class Row(NamedTuple):
    """One layer: its path, the largest and the mean difference of its output over the largest output."""

    path: str
    largest: float
    mean: float


def compare(
    artifact: checkpoint.Artifact, images: Float[np.ndarray, "images size size 3"], made: onnx.ModelProto
) -> list[Row]:
    """Differences of every linear layer, in the order of the forward pass.

    Args:
        artifact: the model.
        images: normalized.
        made: of this artefact, as `export.onnx` writes it.

    Raises:
        UserError: the file lacks a layer of the model.
    """
    wanted, found = of_model(artifact, images), of_file(artifact, images, made)
    rows = []
    for path, got in found.items():
        difference = np.abs(got - wanted[path]) / max(float(np.abs(wanted[path]).max()), 1e-30)
        rows.append(Row(path, float(difference.max()), float(difference.mean())))
    return rows


def parting(rows: Sequence[Row], noise: float) -> Row:
    """The layer whose difference exceeds all before it most; no difference counts below `noise`."""
    jumps, before = [], noise
    for row in rows:
        jumps.append(row.largest / before)
        before = max(before, row.largest)
    return rows[int(np.argmax(jumps))]


def of_model(artifact: checkpoint.Artifact, images: Any) -> dict[str, np.ndarray]:
    """Outputs of the linear layers by path, (rows, n), the rows that a file has, in its order."""

    @jax.jit
    def run(params: Any) -> Any:
        return artifact.model.apply(
            {"params": params}, images, capture_intermediates=_linear, mutable=["intermediates"]
        )

    kept, outputs = run(artifact.params)[1]["intermediates"], {}
    for info in artifact.spec.layers:
        (output,) = trees.get(kept, info.path)["__call__"]
        order = export.orders(artifact.model).get(info.path)
        value = np.asarray(output)[:, order] if order is not None else np.asarray(output)
        outputs[info.path] = value.reshape(-1, value.shape[-1]) * _gamma(artifact, info.path)
    return outputs


def _linear(module: Any, method: str) -> bool:
    return isinstance(module, Linear) and method == "__call__"


def _gamma(artifact: checkpoint.Artifact, path: str) -> Any:
    """What the file's layer multiplies its output by, and the model only behind the layer."""
    block, _, layer = path.partition("/")
    weights = artifact.params[block]
    return weights.get({"attn/proj": "ls1_gamma", "mlp/fc2": "ls2_gamma"}.get(layer, ""), 1)


def of_file(artifact: checkpoint.Artifact, images: Any, made: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Outputs of the linear layers of a file, in ONNX Runtime, by path, (rows, n)."""
    import onnxruntime

    there = {name for node in made.graph.node for name in node.output}
    names = {}
    for path in (info.path for info in artifact.spec.layers):
        ends = linear.OUTPUTS if path.endswith("/qkv") else ("output",)
        names[path] = [f"{path}:{end}" for end in ends]
        if missing := [name for name in names[path] if name not in there]:
            raise UserError(f"The ONNX file has no value {missing[0]!r}; export {artifact.name} again.")
    model = onnx.ModelProto()
    model.CopyFrom(made)
    wanted = [name for group in names.values() for name in group]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(wanted, session.run(wanted, {"images": np.asarray(images)}), strict=True))
    return {path: np.concatenate([values[name] for name in group], -1) for path, group in names.items()}


def table(rows: Sequence[Row], noise: float) -> str:
    width, at = max(len(row.path) for row in rows), parting(rows, noise)
    lines = [f"{'layer':<{width}}  {'largest':>8}  {'mean':>8}"]
    lines += [f"{row.path:<{width}}  {row.largest:>8.1e}  {row.mean:>8.1e}{' <-' * (row is at)}" for row in rows]
    if at.largest <= noise:
        lines.append(f"All within {noise:g}.")
    else:
        lines.append(f"The largest jump is in {at.path}.")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lraqvit_jax.export.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("artifact", type=pathlib.Path, help="DIR/checkpoints/NAME")
    parser.add_argument("--onnx", type=pathlib.Path, help="a file of that artefact; otherwise it is exported afresh")
    parser.add_argument("--target", choices=TARGETS, default="avx2", help="of the export, where there is no --onnx")
    parser.add_argument("--images", default="", help="a data source; otherwise that of the artefact's calibration")
    parser.add_argument("--count", type=int, default=8, help="how many images, the first ones")
    return parser.parse_args(argv)


def _images(artifact: checkpoint.Artifact, name: str, count: int) -> np.ndarray:
    data = artifact.meta["config"]["data"]
    source = sources.load(name or data["calibration"] or data["train"], "calibration", data["data_dir"])
    if not 0 < count <= len(source):
        raise UserError(f"--count is {count}; the source has {len(source)} images, give 1 to {len(source)}.")
    batches = pipeline.ordered(source, artifact.preprocess, batch_size=count, indices=np.arange(count))
    return next(iter(batches))["image"]


def _file(artifact: checkpoint.Artifact, path: pathlib.Path | None, target: str) -> onnx.ModelProto:
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            return export.export(artifact, pathlib.Path(folder) / "one.onnx", target)
    try:
        return onnx.load(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as ONNX ({error}); name a file that the stage export wrote.") from error


def cli() -> None:
    """Entry point: turns a user's mistake into one sentence and exit code 2."""
    try:
        options = parse(sys.argv[1:])
        artifact = checkpoint.load_artifact(options.artifact)
        images = _images(artifact, options.images, options.count)
        made = _file(artifact, options.onnx, options.target)
        quantized = any(layer.form == "quantized" for layer in artifact.plan.values())
        print(table(compare(artifact, images, made), NOISE[quantized]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()
