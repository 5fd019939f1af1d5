"""What may change in a work directory that is there: it is honoured, or refused, never passed over."""

import json

import pytest
import safetensors.numpy

from lraqvit_jax.config import parse
from lraqvit_jax.export import litert, targets
from lraqvit_jax.run import opening
from lraqvit_jax.weights import artifacts
from tests.integration import command

STAGES = "--stages=teacher,factorize,export"
FIELDS = (
    *command.FAST,
    "--config.runs={}",
    "--config.quant.methods={}",
    "--config.export.artifacts=('lra',)",
)
CPU = "--config.export.platforms=('cpu',)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dense model and its pairs, exported."""
    folder = tmp_path_factory.mktemp("changes") / "work"
    command.digits(folder, *FIELDS, CPU, STAGES, check=True)
    return folder


def card(folder):
    return json.loads((folder / "export" / "lra.json").read_text())


def test_files_are_exported_again_only_where_what_was_asked_for_changed(made, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in (made / "export").iterdir()}
    command.digits(made, *FIELDS, CPU, "--stages=export", check=True)
    assert {path.name: path.stat().st_mtime_ns for path in (made / "export").iterdir()} == before
    fields = ("--config.export.onnx_target=auto", "--config.export.onnx_input=uint8", "--config.export.onnx_opset=20")
    done = command.digits(made, *FIELDS, CPU, *fields, "--stages=export", check=True)
    target = targets.resolved("auto")
    assert f"export.onnx_target is 'auto': {target!r}" in done.stdout + done.stderr
    assert (card(made)["onnx_target"], card(made)["onnx_opset"]) == (target, 20)
    assert card(made)["onnx_contract"]["input"]["dtype"] == "uint8"
    assert card(made)["parity"]["onnx"]["max_relative_difference"] < 1e-4
    assert (made / "export" / "lra.stablehlo").stat().st_mtime_ns > before["lra.stablehlo"]
    more = ("--config.export.platforms=('cpu','tpu')", "--config.export.safetensors=expanded")
    command.digits(made, *FIELDS, *more, "--stages=export", check=True)
    assert card(made)["platforms"] == ["cpu", "tpu"]
    stored = safetensors.numpy.load_file(made / "export" / "lra.safetensors")
    assert stored["blocks.0.attn.qkv.weight"].shape[0] == 3 * stored["blocks.0.attn.qkv.weight"].shape[1]


def test_modules_are_written_and_checked_where_they_are_asked_for(made):
    """And LiteRT files, or a line with the file of requirements that they need; another call leaves what is there."""
    fields = (*FIELDS, CPU, "--config.export.mlir=('bytecode','text')", "--config.export.litert=('float32','static')")
    done = command.digits(made, *fields, "--stages=export", check=True)
    written = card(made)
    assert written["mlir"] == ["bytecode", "text"]
    assert written["stablehlo_version"]["mlirbc"][0] >= 1
    for suffix in ("mlirbc", "mlir"):
        assert written["parity"][suffix]["max_relative_difference"] < 1e-5
        assert (made / "export" / f"lra.{suffix}").stat().st_size == written["bytes"][suffix]
    absent = litert.missing()
    assert "no lra.static.tflite: lra is a float model" in done.stdout
    assert written["litert"] == ([] if absent else ["float32", "static"])
    if absent:
        assert f"no lra.float32.tflite: {absent}" in done.stdout
    else:
        assert written["parity"]["float32.tflite"]["max_relative_difference"] < 1e-5
        assert "float32.tflite" in written["top1"]
    before = {path.name: path.stat().st_mtime_ns for path in (made / "export").iterdir()}
    command.digits(made, *fields, "--stages=export", check=True)
    assert {path.name: path.stat().st_mtime_ns for path in (made / "export").iterdir()} == before
    command.digits(made, *FIELDS, CPU, "--stages=export", check=True)
    assert not [path for path in (made / "export").iterdir() if path.suffix in (".mlir", ".mlirbc", ".tflite")]
    refused = command.digits(made, *FIELDS, CPU, "--config.export.litert=('int8',)", "--stages=export")
    assert refused.returncode == 2
    assert "export.litert is 'int8'" in refused.stderr


@pytest.mark.parametrize("platforms", ["('cuda',)", "('gpu', 'cpu')", "()"])
def test_platforms_on_which_the_file_cannot_be_checked_are_refused(made, platforms):
    done = command.digits(made, *FIELDS, f"--config.export.platforms={platforms}", "--stages=export")
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.startswith("error: export.platforms")


def test_other_class_names_reach_artefacts_and_files(made, tmp_path):
    names = [f"digit {index}" for index in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    field = f"--config.class_names={tmp_path / 'names.txt'}"
    command.digits(made, *FIELDS, CPU, field, "--stages=export", check=True)
    assert card(made)["class_names"] == names
    assert artifacts.read_meta(made / "checkpoints" / "lra")["class_names"] == names
    refused = command.digits(made, *FIELDS, CPU, "--stages=export")
    assert refused.returncode == 2
    assert "class names" in refused.stderr


def test_a_finished_teacher_needs_its_weights_no_more(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    command.digits(first, *FIELDS, "--stages=teacher", check=True)
    weights = f"--config.weights=artifact:{first / 'checkpoints' / 'dense'}"
    fields = (*FIELDS, weights, "--config.teacher.steps=0")
    command.digits(second, *fields, "--stages=teacher", check=True)
    (first / "checkpoints" / "dense").rename(first / "gone")
    command.digits(second, *fields, "--stages=factorize", check=True)
    assert set(command.rows(second)) == {"dense", "lra", "lra_whitened"}
    missing = command.digits(tmp_path / "third", *fields, "--stages=teacher")
    assert missing.returncode == 2  # a new one still wants them


def test_a_trace_of_a_few_steps_is_written(tmp_path):
    trace = tmp_path / "trace"
    command.digits(tmp_path / "work", *FIELDS, f"--config.profile={trace}", "--stages=teacher", check=True)
    assert list(trace.rglob("*.xplane.pb"))


def test_a_configuration_of_an_older_version_opens_its_directory(made):
    """Without fields that came later, as an older version wrote it."""
    written = made / "config.json"
    whole = written.read_text()
    claim = json.loads(whole)
    fields = json.loads(whole)["config"]
    del claim["config"]["profile"]
    written.write_text(json.dumps(claim))
    try:
        assert opening.open_workspace(parse(fields), made, write=False).num_classes == 10
    finally:
        written.write_text(whole)
