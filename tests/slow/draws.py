"""Static int8 files in OpenVINO beside what NNCF makes of the same float models, over draws of the calibration images.

    python -m tests.slow.draws DIR/checkpoints/dense DIR/checkpoints/NAME ... --calibration folder:PHOTOS?labels=none \
        --images folder:LABELLED [--draws 3] [--count 1000] [--weight_bits 8]

For each draw of IMAGES photographs: `qdq` files by the quantizer `static`, and the same asymmetric, and NNCF's int8 of
the float file. Right answers on the first labelled images, and KL from the answers of the first model's float file; of
what is ours in JAX as well, whose sums are exact on every processor, and in ONNX Runtime the file for this processor.
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from lraqvit_jax.base import arguments, console
from lraqvit_jax.calibration import observe
from lraqvit_jax.export import onnx
from lraqvit_jax.options.quant import BITS, QUANTIZERS
from lraqvit_jax.plan import records
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.quant import quantize
from lraqvit_jax.runtimes import nncf
from lraqvit_jax.training.losses import logits_kl
from lraqvit_jax.weights import artifacts
from tests.slow import files
from tests.unit import small

IMAGES, BATCH = 32, 16


def integers(
    artifact: artifacts.Artifact, images: np.ndarray, asymmetric: bool, weight_bits: int
) -> artifacts.Artifact:
    """A float artefact by `static`, calibrated on these images."""
    layers = records.resolved(artifact.spec.layers, artifact.plan)
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    batches = [{"image": part, "mask": np.ones(len(part), bool)} for part in parts]
    seen = observe.inputs(artifact.model, artifact.params, layers, batches, small.MESH)
    fields = {
        "form": "quantized",
        "bits": 8,
        "weight_bits": weight_bits,
        "granularity": "per_tensor",
        "asymmetric": asymmetric,
    }
    plan = {info.path: dataclasses.replace(artifact.plan[info.path], **fields) for info in layers}
    method = dataclasses.replace(QUANTIZERS["static"], asymmetric=asymmetric)
    made = quantize.quantize(artifact.params, plan, list(layers), seen, method)
    meta = {**artifact.meta, "plan": to_json(made.plan)}
    return artifacts.Artifact(artifacts.build(meta), made.params, artifact.preprocess, meta)


def written(
    artifact: artifacts.Artifact, pool: np.ndarray, draws: int, weight_bits: int, folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path, artifacts.Artifact | None]]:
    """The float file of a model and those of integers of every draw: what each is, and the model where it is ours."""
    whole = folder / "float.onnx"
    onnx.export(artifact, whole, "qdq")
    yield "float", whole, artifact
    for draw in range(draws):
        images = pool[np.random.default_rng(draw).choice(len(pool), IMAGES, replace=False)]
        for words, asymmetric in (("static", False), ("static, asymmetric", True)):
            path = folder / f"{draw}.{asymmetric}.onnx"
            made = integers(artifact, images, asymmetric, weight_bits)
            onnx.export(made, path, "qdq")
            yield f"draw {draw}, {words}", path, made
        nncf.convert(whole, folder / f"{draw}.xml", images)
        yield f"draw {draw}, NNCF", folder / f"{draw}.xml", None


def command(argv: list[str]) -> None:
    parser = arguments.Parser("python -m tests.slow.draws", __doc__)
    parser.add_argument("model", nargs="+", type=pathlib.Path, help="DIR/checkpoints/NAME, float; the first is dense")
    parser.add_argument("--calibration", required=True, help="a data source")
    parser.add_argument("--images", required=True, help="a data source with labels")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000, help="how many labelled images, the first ones")
    parser.add_argument("--weight_bits", type=int, choices=BITS, default=8, help="of our kernels; NNCF's have its own")
    given = parser.parse_args(argv)
    console.set_level(console.QUIET)
    models = [artifacts.load_artifact(path) for path in given.model]
    pool = files.prepared(models[0], given.calibration, sys.maxsize, "calibration")[0]
    images, labels = files.prepared(models[0], given.images, given.count)
    load, dense = files.openvinos(models[0].preprocess.size)["OpenVINO"], None
    print(
        f"| model | file | OpenVINO: top-1 of {len(images):,}, KL | JAX | ONNX Runtime |\n|---|---|---|---|---|",
        flush=True,
    )
    for artifact in models:
        with tempfile.TemporaryDirectory() as name:
            for words, path, made in written(artifact, pool, given.draws, given.weight_bits, pathlib.Path(name)):
                runs = [load(path)]
                if made is not None:
                    own = path.with_suffix(".own.onnx")
                    onnx.export(made, own, "auto")
                    runs += [files.model(made), onnx.load(own)]
                answers = [files.logits(run, images) for run in runs]
                dense = answers[0] if dense is None else dense
                cells = [f"{files.top1(one, labels):.1f}, {float(logits_kl(dense, one)):.4f}" for one in answers]
                cells += [""] * (3 - len(cells))
                print(f"| {artifact.name} | {words} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    arguments.run(command)
