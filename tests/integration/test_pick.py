"""What the table says is to be taken is what is exported, what its file says, and what is loaded."""

import json
import re
import signal

import pytest

import lraqvit_jax
from configs import digits
from lraqvit_jax import config as config_lib
from lraqvit_jax import main
from lraqvit_jax.run import results
from tests.integration import command


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    fields = digits.get_config()
    fields.teacher.steps = fields.steps = 6
    fields.quant.dense = True
    fields.quant.methods = {"int8": config_lib.quantizer(granularity="per_token_dynamic")}
    fields.export.artifacts = ("dense",)
    work = tmp_path_factory.mktemp("pick") / "work"
    main.run(config_lib.parse(fields.to_dict()), str(work))
    return work


def test_the_dense_model_in_integers_is_a_row(made):
    rows = {row["name"]: row for row in results.read(made)["rows"]}
    assert list(rows) == ["dense", "lra", "lra_whitened", "rb_lra_kd", "dense_int8", "int8"]
    assert rows["dense_int8"]["params"] == rows["dense"]["params"]
    assert rows["int8"]["size_mb"] < rows["dense_int8"]["size_mb"] < rows["rb_lra_kd"]["size_mb"]
    assert abs(rows["dense_int8"]["top1"] - rows["dense"]["top1"]) < 5
    assert "dense_int8" in (made / "report.html").read_text()


def test_the_row_to_take_is_exported_and_loaded(made):
    picked = results.pick(results.read(made)["rows"])["name"]
    assert lraqvit_jax.load(made).meta["name"] == picked
    assert {path.stem for path in (made / "export").glob("*.onnx")} == {"dense", picked}
    card = json.loads((made / "export" / f"{picked}.json").read_text())
    said = results.taken(made)
    assert said.startswith(f"To take: {picked}, ")
    assert f"export/{picked}.onnx, {(made / 'export' / f'{picked}.onnx').stat().st_size / 1e6:.3f} MB" in said
    assert f"answers {card['top1']['onnx']:.2f} % of {card['labelled_images']:,} images itself" in said
    report = re.sub(r"\s+", " ", (made / "report.html").read_text())
    assert f"Its file is export/{picked}.onnx" in report
    assert said in (made / "export" / "README.md").read_text()


def test_what_the_model_answered_is_counted_as_if_it_were_asked_again(made):
    rows = {row["name"]: row for row in results.read(made)["rows"]}
    for path in (made / "export").glob("*.json"):
        card = json.loads(path.read_text())
        assert card["labelled_images"] == rows[card["name"]]["n_images"]
        assert card["top1"]["model"] == pytest.approx(rows[card["name"]]["top1"])


def test_a_killed_export_leaves_no_file_that_looks_checked(tmp_path):
    """Killed while the files are compared."""
    kill = "from lraqvit_jax.stages import export\nimport os, signal\n"
    kill += "export._checked = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    work = tmp_path / "work"
    assert command.digits(work, *command.FAST, prelude=kill).returncode == -signal.SIGKILL
    assert [path for path in (work / "export").iterdir() if not path.name.startswith(".")] == []
    command.digits(work, *command.FAST, check=True)
    assert not [path for path in (work / "export").iterdir() if path.name.startswith(".")]
    assert (work / "export" / "int8_wads.json").exists()
