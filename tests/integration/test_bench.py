"""`python -m lraqvit_jax.bench`, as a user would run it."""

import importlib.util
import json

import numpy as np
import pytest

from tests.integration import command

GRID = (
    "--config.grid.decompositions=('svd','wr','whitened')",
    "--config.grid.methods=('uniform_ratio',)",
    "--config.grid.budgets=(0.6,)",
    "--config.plan.budget=0.6",
)


def bench(*arguments):
    return command.run(*arguments, module="bench")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The grid of digits in a work directory in which the pipeline then runs at the same budget."""
    workdir = tmp_path_factory.mktemp("bench")
    fields = ("--config=configs/digits.py", f"--workdir={workdir}", *command.FAST, *GRID)
    first = bench("lowrank", *fields, "--config.grid.runs=('rb_lra_kd',)")
    assert first.returncode == 0, first.stderr[-3000:]
    again = bench("lowrank", *fields, "--config.grid.runs=('rb_lra_kd',)")
    command.run(*fields, "--stages=factorize,evaluate", check=True)
    return workdir, first, again


def test_every_cell_of_the_grid_has_a_row_and_a_place_in_the_table(grid):
    workdir, first, _ = grid
    rows = json.loads((workdir / "lowrank.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "svd", "wr", "whitened", "rb_lra_kd"]
    assert len({row["params"] for row in rows}) == 2
    for row in rows[1:]:
        assert f"{row['name']} uniform_ratio 0.6 seed 0: top-1 {row['top1']:.2f} %" in first.stdout
    assert (workdir / "lowrank.svg").read_text().startswith("<svg")


def test_a_row_is_that_of_the_pipeline(grid):
    """The grid evaluates products of pairs in the dense model; the pipeline the pairs themselves."""
    workdir, _, _ = grid
    rows = {row["name"]: row for row in json.loads((workdir / "lowrank.json").read_text())["rows"]}
    piped = {row["name"]: row for row in json.loads((workdir / "results.json").read_text())["rows"]}
    for name, other in (("dense", "dense"), ("svd", "lra"), ("whitened", "lra_whitened")):
        for key in ("params", "linear_gflops", "n_images"):
            assert rows[name][key] == piped[other][key]
        # One image may stand on the edge between two classes.
        assert abs(rows[name]["top1"] - piped[other]["top1"]) <= 100 / 297 + 1e-9
    assert rows["wr"]["top1"] < rows["whitened"]["top1"]


def test_the_same_command_again_computes_nothing(grid):
    _, _, again = grid
    assert again.returncode == 0
    assert "seed 0: top-1" not in again.stdout
    assert "uniform_ratio  whitened" in again.stdout


@pytest.mark.slow
def test_a_step_is_timed_against_its_parts(tmp_path):
    done = bench("step", "--config=configs/digits.py", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "step.json").read_text())
    parts = sum(found["step"][name] for name in ("teacher_ms", "student_ms", "update_ms"))
    assert found["step"]["step_over_parts"] == pytest.approx(found["step"]["step_ms"] / parts)
    assert found["step"]["gflops_a_step"] > 0
    assert {row["reparam"] > 0 for row in found["forms"].values()} == {True}


TIMED = ("dense", "random:int8_low_rank_dynamic")


def test_models_are_timed_in_their_runtimes(grid):
    """Artefacts and random weights; an option that a runtime does not know loses no other row."""
    workdir, *_ = grid
    fields = ("--config=configs/digits.py", f"--workdir={workdir}", *command.FAST, "--config.plan.budget=0.6")
    options = (
        f"--config.latency.models={TIMED}",
        "--config.latency.runtimes=('onnxruntime','jax?speed=1','jax','openvino')",
        "--config.latency.threads=(1,)",
        "--config.latency.batches=(2,)",
        "--config.latency.rounds=4",
    )
    done = bench("latency", *fields, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "jax?speed=1 does not run dense: ValueError: jax takes no option 'speed'" in done.stdout
    if importlib.util.find_spec("openvino") is None:
        assert "openvino is not installed and left out; pip install openvino" in done.stdout
    found = json.loads((workdir / "latency-runtimes.json").read_text())
    rows = {(row["runtime"], row["model"]): row for row in found["rows"] if row["runtime"] != "openvino"}
    assert list(rows) == [(runtime, model) for runtime in ("onnxruntime", "jax") for model in TIMED]
    assert found["reference"] == {"model": "dense", "runtime": "onnxruntime"}
    for (runtime, model), row in rows.items():
        assert (row["threads"], row["batch"]) == (1, 2)
        assert row["difference"] < 1e-5
        assert row["peak_mb"] >= row["resident_mb"] > 0 < row["baseline_mb"] <= row["peak_mb"]
        assert row["load_s"] > 0 < row["file_mb"]
        assert f"{model:<28}  {runtime}" in done.stdout
        for clock in ("wall", "cpu"):
            times, own, first = (
                np.array(one[f"{clock}_ms"]) for one in (row, rows[runtime, "dense"], rows["onnxruntime", "dense"])
            )
            assert times.shape == (4,) and np.all(times > 0)
            assert row[clock]["ms"]["median"] == pytest.approx(np.median(times))
            assert row[clock]["in_runtime"]["median"] == pytest.approx(np.median(own / times))
            assert row[clock]["in_first"]["median"] == pytest.approx(np.median(first / times))
            assert row[clock]["ms"]["low"] <= row[clock]["ms"]["median"] <= row[clock]["ms"]["high"]
        assert row["reference"] == runtime
    assert "jax" in (workdir / "latency-runtimes.svg").read_text()
    assert "\n| dense | jax | " in (workdir / "latency-runtimes.md").read_text()
    assert sorted(path.name for path in workdir.glob("tmp*")) == []


QUANTIZERS = """
from configs import digits
from lraqvit_jax import config as base
def get_config():
    config = digits.get_config()
    config.quant_grid.methods = {
        "naive": base.quantizer(granularity="per_tensor"),
        "ours": base.quantizer(
            method="smoothquant",
            granularity="per_token_dynamic",
            asymmetric=True,
            rounding="ridge",
            between="hadamard",
        ),
    }
    return config
"""


def test_quantizers_in_a_grid_of_models_widths_and_draws(tmp_path):
    (tmp_path / "config.py").write_text(QUANTIZERS)
    workdir = tmp_path / "run"
    fields = (f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}", *command.FAST)
    command.run(*fields, "--stages=teacher,factorize", check=True)
    grid = ("--config.quant_grid.sources=('dense','lra_whitened')", "--config.quant_grid.widths=('w4a8',)")
    first, again = (bench("quant", *fields, *grid, "--config.quant_grid.seeds=(0,)") for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr[-3000:]
    rows = json.loads((workdir / "quant.json").read_text())["rows"]
    assert len(rows) == 2 * (1 + 2)
    assert first.stdout.count(" seed 0: top-1") == 6
    assert " seed 0: top-1" not in again.stdout
    assert again.stdout.count("loudest token over the median one: ") == 2
    assert again.stdout.count("difference") == again.stdout.count("KL of the logits") == 2
    for source in ("dense", "lra_whitened"):
        drawn = (workdir / f"errors-{source}-w4a8.svg").read_text()
        assert all(name in drawn for name in ("naive", "ours", "0/mlp/fc1:x"))
        assert "before: largest" in (workdir / f"activations-{source}-w4a8-ours.svg").read_text()
    by = {(row["source"], row["name"]): row for row in rows}
    piped = command.rows(workdir)
    for source in ("dense", "lra_whitened"):
        assert by[source, "float"]["top1"] == piped[source]["top1"]
        assert by[source, "ours"]["size_mb"] < 0.3 * by[source, "float"]["size_mb"]
        errors = [sum(by[source, name]["errors"].values()) for name in ("naive", "ours")]
        assert errors[1] < errors[0]
        assert 0 < by[source, "ours"]["kl"] < by[source, "naive"]["kl"]
        assert by[source, "ours"]["agreement"] > by[source, "naive"]["agreement"] + 10


def test_a_profile_of_every_form(tmp_path):
    """Of random weights: nothing is trained, nothing but the table is kept."""
    done = bench("profile", "--config=configs/digits.py", f"--workdir={tmp_path}", "--config.export.onnx_target=vnni")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "profile.json").read_text())["rows"]
    rows = {name.removeprefix("random:"): row for name, row in rows.items()}
    assert rows["dense"]["bytes"] > rows["low_rank"]["bytes"] > rows["int8_low_rank"]["bytes"]
    for name, kinds in (
        ("dense", {"Gemm", "Attention", "Gelu"}),
        ("int8_low_rank", {"MatMulIntegerToFloat", "QLinearMatMul"}),
    ):
        assert kinds <= set(rows[name]["kinds"])
        assert sum(rows[name]["kinds"].values()) > 0
        assert len(rows[name]["ms"]) == 15
    assert "times faster" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "profile.json"]


def test_peers_beside_our_files(grid):
    """ONNX Runtime's quantizers, which are installed, on the images of our rows; what is not, is said."""
    workdir, *_ = grid
    fields = ("--config=configs/digits.py", f"--workdir={workdir}", *command.FAST, "--config.plan.budget=0.6")
    names = ("onnxruntime_static_matmul", "onnxruntime_dynamic", "nncf_weights_int8")
    options = ("--config.peers.models=('lra_whitened',)", f"--config.peers.peers={names}", "--config.peers.rounds=3")
    done = bench("peers", *fields, *options, "--config.peers.images=50")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((workdir / "peers.json").read_text())
    rows = {(row["name"], row["runtime"]): row for row in found["rows"]}
    expected = {(name, "onnxruntime") for name in ("dense", "lra_whitened", *names[:2])}
    assert expected <= set(rows)
    assert found["images"] == 50
    for (name, _), row in rows.items():
        right = np.equal(row["answers"], found["labels"])
        assert (row["top1"], len(row["answers"])) == (100 * right.mean(), 50)
        assert row["drop"]["images"] == 50
        assert row["file_mb"] > 0 < row["wall"]["median"]
        assert f"\n{name} " in done.stdout
    if importlib.util.find_spec("nncf") is None:
        assert "nncf_weights_int8 is left out, nncf" in done.stdout
    assert sorted(path.name for path in workdir.glob("tmp*")) == []


def test_what_a_file_answers_is_what_its_model_answers(grid):
    """The dense row of the peers is the dense row of the table, on all of its images."""
    workdir, *_ = grid
    fields = ("--config=configs/digits.py", f"--workdir={workdir}", *command.FAST, "--config.plan.budget=0.6")
    done = bench("peers", *fields, "--config.peers.peers=()", "--config.peers.rounds=1")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((workdir / "peers.json").read_text())
    assert found["images"] == command.rows(workdir)["dense"]["n_images"]
    assert abs(found["rows"][0]["top1"] - command.rows(workdir)["dense"]["top1"]) <= 100 / found["images"] + 1e-9
