"""Where an ONNX file parts from its model: both on the same images, layer by layer.

python -m lraqvit_jax.export.compare DIR/checkpoints/int8_wads
python -m lraqvit_jax.export.compare DIR/checkpoints/int8_wads --onnx=FILE --images=folder:PHOTOS --count=8

Without --onnx, the artefact is exported afresh; without --images, they are those of its calibration. Prints, for every
linear layer, the largest difference of its output over the largest output: on the input that the file's layer had, so
that each is judged by itself, and from the images on, so that whatever is between the layers counts as well. Where
values are rounded to integers, one that lies on the edge between two falls to either side, by 1e-7 of a difference;
each moves what follows by a step, and after a few layers such differences are as large as what rounding itself does.
That is no fault. Exit codes: 0 done, 2 a mistake in the input, 1 a defect here.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jaxtyping import Float
from onnx import TensorProto, helper

from lraqvit_jax.base import arguments, trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import restored
from lraqvit_jax.data import pipeline, sources
from lraqvit_jax.export import linear
from lraqvit_jax.export import onnx as export
from lraqvit_jax.models.linear import Linear, LinearOptions
from lraqvit_jax.options.export import TARGETS
from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.weights import artifacts

NOISE = {False: 1e-4, True: 2e-2}
"""What a layer by itself may differ by: of a float model, and where values are rounded to integers."""


class Row(NamedTuple):
    """One layer: its path; the largest difference of its output, over the largest output, on the file's own input, and
    from the images on; the mean of the latter."""

    path: str
    alone: float
    largest: float
    mean: float


def compare(
    artifact: artifacts.Artifact, images: Float[np.ndarray, "images size size 3"], made: onnx.ModelProto
) -> list[Row]:
    """Differences of every linear layer, in the order of the forward pass.

    Args:
        artifact: the model.
        images: normalized.
        made: of this artefact, as `export.onnx` writes it.

    Raises:
        UserError: the file lacks a layer of the model.
    """
    of_the_model, (inputs, of_the_file) = of_model(artifact, images), of_file(artifact, images, made)
    rows = []
    for info in artifact.spec.layers:
        path, got = info.path, of_the_file[info.path]
        alone = np.abs(got - of_layer(artifact, info, inputs[path], len(images)))
        largest = np.abs(got - of_the_model[path])
        scale = max(float(np.abs(of_the_model[path]).max()), 1e-30)
        rows.append(Row(path, *(float(one) / scale for one in (alone.max(), largest.max(), largest.mean()))))
    return rows


def worst(rows: Sequence[Row]) -> Row:
    """The layer that differs most by itself."""
    return max(rows, key=lambda row: row.alone)


def of_layer(artifact: artifacts.Artifact, info: LinearInfo, rows: np.ndarray, images: int) -> np.ndarray:
    """What the model's layer makes of the rows that the file's layer read."""
    order = export.orders(artifact.model).get(info.path)
    weights = dict(trees.get(artifact.params, info.path))
    for name in ("x_scale", "z_scale", "x_center", "z_center"):
        if order is not None and np.ndim(weights.get(name, 0)):
            weights[name] = weights[name][order]
    options = LinearOptions(plan=(("", artifact.plan[info.path]),))
    layer = Linear(info.features_out, options, use_bias=info.bias, heads=info.heads or 1)
    output = np.asarray(layer.apply({"params": weights}, rows.reshape(images, -1, rows.shape[-1])))
    return output.reshape(-1, info.features_out) * _gamma(artifact, info.path)


def of_model(artifact: artifacts.Artifact, images: Any) -> dict[str, np.ndarray]:
    """Outputs of the linear layers by path, (rows, n), the rows that a file has, in its order."""

    @jax.jit
    def run(params: Any, images: Any) -> Any:
        variables, kept = {"params": params}, ["intermediates"]
        return artifact.model.apply(variables, images, capture_intermediates=_linear, mutable=kept)

    kept, outputs = run(artifact.params, images)[1]["intermediates"], {}
    for info in artifact.spec.layers:
        (output,) = trees.get(kept, info.path)["__call__"]
        order = export.orders(artifact.model).get(info.path)
        value = np.asarray(output)[:, order] if order is not None else np.asarray(output)
        outputs[info.path] = value.reshape(-1, value.shape[-1]) * _gamma(artifact, info.path)
    return outputs


def _linear(module: Any, method: str) -> bool:
    return isinstance(module, Linear) and method == "__call__"


def _gamma(artifact: artifacts.Artifact, path: str) -> Any:
    """What the file's layer multiplies its output by, and the model only behind the layer."""
    block, _, layer = path.partition("/")
    weights = artifact.params[block]
    return weights.get({"attn/proj": "ls1_gamma", "mlp/fc2": "ls2_gamma"}.get(layer, ""), 1)


def of_file(
    artifact: artifacts.Artifact, images: Any, made: onnx.ModelProto
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and outputs of the linear layers of a file, in ONNX Runtime, by path, (rows, m) and (rows, n)."""
    import onnxruntime

    there = {name for node in made.graph.node for name in node.output}
    names = {}
    for path in (info.path for info in artifact.spec.layers):
        ends = linear.OUTPUTS if path.endswith("/qkv") else ("output",)
        names[path] = [f"{path}:{end}" for end in ("input", *ends)]
        if missing := [name for name in names[path] if name not in there]:
            raise UserError(f"The ONNX file has no value {missing[0]!r}; export {artifact.name} again.")
    model = onnx.ModelProto()
    model.CopyFrom(made)
    outputs = [name for group in names.values() for name in group]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    if session.get_inputs()[0].type != "tensor(float)":
        raise UserError(
            "The ONNX file reads pixels, and layers are compared on normalized images; export it with images='float32'."
        )
    runs = zip(outputs, session.run(outputs, {"images": np.asarray(images)}), strict=True)
    values = {name: value.reshape(-1, value.shape[-1]) for name, value in runs}
    inputs = {path: values[first] for path, (first, *_) in names.items()}
    return inputs, {path: np.concatenate([values[one] for one in rest], -1) for path, (_, *rest) in names.items()}


def table(rows: Sequence[Row], noise: float) -> str:
    """A line for each layer, and which differs most; `noise` is what one may differ by."""
    width, at = max(len(row.path) for row in rows), worst(rows)
    lines = [f"{'layer':<{width}}  {'by itself':>9}  {'from the images':>15}  {'mean':>8}"]
    for row in rows:
        mark = " <-" * (row is at and row.alone > noise)
        lines.append(f"{row.path:<{width}}  {row.alone:>9.1e}  {row.largest:>15.1e}  {row.mean:>8.1e}{mark}")
    if at.alone > noise:
        lines.append(f"They part in {at.path}: {at.alone:.1e} by itself.")
    else:
        lines.append(f"Every layer by itself is within {noise:g}.")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments.Parser("python -m lraqvit_jax.export.compare", __doc__)
    parser.add_argument("artifact", type=pathlib.Path, help="DIR/checkpoints/NAME")
    parser.add_argument("--onnx", type=pathlib.Path, help="a file of that artefact; otherwise it is exported afresh")
    parser.add_argument("--target", choices=TARGETS, default="avx2", help="of the export, where there is no --onnx")
    parser.add_argument("--images", default="", help="a data source; otherwise that of the artefact's calibration")
    parser.add_argument("--count", type=int, default=8, help="how many images, the first ones")
    return parser.parse_args(argv)


def _images(artifact: artifacts.Artifact, name: str, count: int) -> np.ndarray:
    data = restored(artifact.meta["config"], artifact.name).data
    source = sources.load(name or data.source("calibration"), "calibration", data.data_dir)
    if not 0 < count <= len(source):
        raise UserError(f"--count is {count}; the source has {len(source)} images, give 1 to {len(source)}.")
    batches = pipeline.ordered(source, artifact.preprocess, batch_size=count, indices=np.arange(count))
    return next(iter(batches))["image"]


def _file(artifact: artifacts.Artifact, path: pathlib.Path | None, target: str) -> onnx.ModelProto:
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            return export.export(artifact, pathlib.Path(folder) / "one.onnx", target)
    try:
        return onnx.load(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as ONNX ({error}); name a file that the stage export wrote.") from error


def command(argv: Sequence[str]) -> None:
    """Prints the table."""
    options = parse(argv)
    artifact = artifacts.load_artifact(options.artifact)
    images = _images(artifact, options.images, options.count)
    made = _file(artifact, options.onnx, options.target)
    quantized = any(layer.form == "quantized" for layer in artifact.plan.values())
    print(table(compare(artifact, images, made), NOISE[quantized]))


if __name__ == "__main__":
    arguments.run(command)
