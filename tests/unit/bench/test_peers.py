"""`bench peers`: what it refuses, what its numbers are, and that the peers that are installed do what they say."""

import json

import numpy as np
import onnxruntime
import pytest

from configs import digits
from lraqvit_jax.base import paired
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.bench import _peers, peers
from lraqvit_jax.config import parse
from lraqvit_jax.export import onnx
from tests.unit import small
from tests.unit.export.test_safetensors import artifact, logits


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A small model's float file with images for a peer, and what the model says of others."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("peers")
    one = artifact(small.plan(), small.params(small.plan(), rng))
    one.meta["name"] = "dense"
    onnx.export(one, folder / "float.onnx", "qdq")
    images = {name: small.images(rng, 16) for name in ("calibration", "control")}
    for name, values in images.items():
        np.save(folder / f"{name}.npy", values)
    np.save(folder / "answers.npy", logits(one, images["control"]).argmax(-1))
    (folder / "job.json").write_text(json.dumps({"max_drop": 10.0, "narrow": True}))
    return folder, logits(one, images["calibration"]), images["calibration"]


NEAR = {
    "onnxruntime_static": 0.5,
    "onnxruntime_static_matmul": 0.3,
    "onnxruntime_dynamic": 0.3,
    "neural_compressor_static": 0.5,
    "neural_compressor_smooth": 0.3,
    "nncf_quantize": 0.3,
    "nncf_accuracy_control": 0.3,
    "nncf_weights_int8": 0.05,
}
"""Norm of what a peer's logits are off over that of the model's; of 32 features in whole-tensor scales, much."""


def made(job, name, run):
    """The file that a peer makes is of integers, and its logits are near the model's, but not equal."""
    folder, wanted, images = job
    if missing := _peers.missing(_peers.PEERS[name]):
        pytest.skip(f"pip install {' '.join(missing)}")
    path, seconds = peers.make(name, folder, 10)
    assert seconds >= 0
    got = run(path, images)
    off = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 0 < off < NEAR[name]
    return path


def in_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])


def in_openvino(path, images):
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled([image[None]])[0] for image in images])


@pytest.mark.parametrize("name", ["onnxruntime_static", "onnxruntime_static_matmul", "onnxruntime_dynamic"])
def test_onnx_runtimes_quantizers_make_files_of_integers(job, name):
    import onnx as library

    path = made(job, name, in_onnxruntime)
    kinds = {node.op_type for node in library.load(path).graph.node}
    assert kinds & {"QuantizeLinear", "DynamicQuantizeLinear"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # OpenVINO's import forks beside JAX.
@pytest.mark.parametrize("name", [name for name in NEAR if not name.startswith("onnxruntime")])
def test_other_quantizers_make_files_of_integers(job, name):
    made(job, name, in_onnxruntime if _peers.PEERS[name].runtime == "onnxruntime" else in_openvino)


def test_a_peer_that_fails_is_one_line(job, tmp_path, capsys):
    folder, *_ = job
    for path in folder.glob("*.npy"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "job.json").write_bytes((folder / "job.json").read_bytes())
    (tmp_path / "float.onnx").write_bytes(b"no model")
    assert peers.make("onnxruntime_dynamic", tmp_path, 10) is None
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("onnxruntime_dynamic makes nothing, its process ended with 1: ")
    assert "Error" in line
    assert peers.make("onnxruntime_dynamic", tmp_path, 1e-4) is None
    assert "makes nothing within 0.0001 minutes" in capsys.readouterr().out


def test_every_peer_says_what_it_needs_and_what_runs_it():
    assert set(NEAR) | {"nncf_weights_int4"} == set(_peers.PEERS) == set(digits.get_config().peers.peers)
    for peer in _peers.PEERS.values():
        assert peer.runtime in ("onnxruntime", "openvino")
        assert peer.packages and peer.call
    assert _peers.missing(_peers.PEERS["onnxruntime_static"]) == []
    assert _peers.version(_peers.PEERS["onnxruntime_static"]) == f"onnxruntime {onnxruntime.__version__}"
    absent = _peers.PEERS["nncf_quantize"]._replace(packages=("no-such-package", "numpy"))
    assert _peers.missing(absent) == ["no-such-package"]


def test_mistakes_are_refused_before_any_work(tmp_path):
    config = digits.get_config()
    config.peers.peers = ("nncf_quantise",)
    with pytest.raises(UserError, match="'nncf_quantise', which is none; did you mean 'nncf_quantize'"):
        peers.run(parse(config.to_dict()), str(tmp_path / "run"))
    config = digits.get_config()
    with pytest.raises(UserError, match=r"'dense', which .* does not have; run its stage first"):
        peers.run(parse(config.to_dict()), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_drops_are_against_the_dense_models_answers_image_by_image(rng):
    labels = rng.integers(0, 10, 400)
    answers = {name: np.where(rng.random(400) < share, labels, 99) for name, share in (("dense", 0.9), ("peer", 0.8))}
    clocks = {"wall_ms": [1.0, 2.0, 9.0], "cpu_ms": [1.0, 1.0, 1.0]}
    first = {"by": "", "call": "", "runtime": "onnxruntime", "file_mb": 1.0, "seconds": 0.0}
    rows = [{"name": name, **first, "answers": list(said), **clocks} for name, said in answers.items()]
    dense, peer = peers.compared(rows, labels)
    right = {name: said == labels for name, said in answers.items()}
    assert peer["top1"] == 100 * right["peer"].mean()
    assert peer["drop"] == paired.drop(right["dense"], right["peer"])._asdict()
    assert peer["drop"]["drop"] == pytest.approx(dense["top1"] - peer["top1"])
    assert dense["agreement"] == 100
    assert peer["agreement"] == 100 * np.mean(answers["dense"] == answers["peer"])
    assert peer["wall"]["median"] == 2
    assert "peer" in peers.text([dense, peer])
    with pytest.raises(UserError, match="dense model did not run"):
        peers.compared(rows[1:], labels)
