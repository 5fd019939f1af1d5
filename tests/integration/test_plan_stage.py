"""Ranks by what calibration images say, through the command."""

import json

import chex
import jax
import pytest

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.plan.cost import parameters
from lraqvit_jax.plan.files import read_plan
from lraqvit_jax.weights import artifacts
from tests.integration import command
from tests.unit import small

FIELDS = (*command.FAST, "--config.plan.method=logits", "--config.plan.budget=0.6")
PIVOT = ("--config.plan.budget=0.8", "--config.plan.pivot=True")
SPEC = models.spec("vit_pico", num_classes=10, image_size=8)


def chosen(workdir):
    return {path: layer.rank for path, layer in read_plan(workdir / "plan.json").items()}


def share(found):
    layers = [info for info in SPEC.layers if info.compressible]
    spent, dense = (
        sum(parameters(info, rank) for info, rank in ((info, by(info)) for info in layers))
        for by in (lambda info: found[info.path], lambda info: 0)
    )
    return spent / dense


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Teacher, plan, and then runs of every kind of pair and branch to the end."""
    workdir = tmp_path_factory.mktemp("planned")
    early = command.digits(workdir, *FIELDS, "--stages=teacher,factorize")
    before = chosen(workdir)
    command.digits(workdir, *FIELDS, "--stages=plan", check=True)
    after = chosen(workdir)
    command.digits(workdir, *FIELDS, "--stages=plan,factorize,distill,merge", check=True)
    return workdir, early, before, after


def test_ranks_that_are_to_be_measured_cannot_be_used_before(planned):
    _, early, _, _ = planned
    assert early.returncode == 2
    assert "run --stages=plan first" in early.stderr
    assert "Traceback" not in early.stderr


def test_the_stage_chooses_other_ranks_within_the_budget_and_keeps_them(planned):
    workdir, _, before, after = planned
    assert before != after
    assert len({rank for rank in after.values() if rank}) > 1
    assert 0.5 < share(after) <= 0.6
    assert all(rank % 4 == 0 for rank in after.values())
    assert chosen(workdir) == after
    pair = artifacts.read_meta(workdir / "checkpoints" / "rb_lra_kd")["plan"]
    assert {path: layer["rank"] for path, layer in pair.items()} == after


def test_plan_and_factorize_in_one_call_share_their_statistics_and_change_nothing(planned, tmp_path):
    command.digits(tmp_path, *FIELDS, "--stages=teacher,plan,factorize", check=True)
    assert chosen(tmp_path) == planned[3]
    one, two = (
        artifacts.load_artifact(where / "checkpoints" / "lra_whitened", small.MESH).params
        for where in (tmp_path, planned[0])
    )
    chex.assert_trees_all_equal(one, two)


def test_pairs_with_identity_blocks_buy_larger_ranks_and_are_merged_quantized_and_exported(tmp_path):
    command.digits(tmp_path, *command.FAST, "--config.plan.method=logits", *PIVOT, check=True)
    found = chosen(tmp_path)
    layers = [info for info in SPEC.layers if info.compressible]
    assert any(found[info.path] > info.break_even for info in layers)
    made = artifacts.load_artifact(tmp_path / "checkpoints" / "rb_lra_kd")
    kernels = sum(
        leaf.size for info in layers for leaf in jax.tree.leaves(trees.get(made.params, info.path)) if leaf.ndim == 2
    )
    assert 0.7 < kernels / sum(info.features_in * info.features_out for info in layers) <= 0.8
    assert made.meta["merge_difference"] < 1e-5
    trained = artifacts.load_artifact(tmp_path / "checkpoints" / "rb_lra_kd.trained")
    assert {layer.basis for layer in trained.plan.values()} == {""}
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert rows["rb_lra_kd"]["params"] == rows["lra"]["params"] < rows["dense"]["params"]
    exported = {path.name for path in (tmp_path / "export").iterdir()}
    assert {f"{name}.{end}" for name in ("rb_lra_kd", "int8_wads") for end in ("onnx", "safetensors")} <= exported
    assert rows["int8_wads"]["size_mb"] < 0.5 * rows["rb_lra_kd"]["size_mb"]


def test_a_plan_that_the_user_edited_stands(tmp_path):
    command.digits(tmp_path, *FIELDS, "--stages=teacher", check=True)
    edited = json.loads((tmp_path / "plan.json").read_text())
    edited["blocks_0/mlp/fc1"]["rank"] = 8
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    command.digits(tmp_path, *FIELDS, "--stages=plan,factorize", check=True)
    assert json.loads((tmp_path / "plan.json").read_text())["blocks_0/mlp/fc1"]["rank"] == 8
    assert artifacts.read_meta(tmp_path / "checkpoints" / "lra")["plan"]["blocks_0/mlp/fc1"]["rank"] == 8


RUNS = """
from configs import digits
from lraqvit_jax import config as base
def get_config():
    config = digits.get_config()
    config.runs = {
        "plain": base.run(decomposition="kfac", branch="none", weight_decay=0.0, learning_rate=1e-3),
        "attentive": base.run(decomposition="aafm", branch="small_random", delta=1.0),
        "rb_lra_kd": base.run(decomposition="rrr", branch="zero"),
    }
    return config
"""


@pytest.mark.slow
def test_every_decomposition_and_training_form_goes_to_the_end(tmp_path):
    (tmp_path / "config.py").write_text(RUNS)
    fields = (f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}", *command.FAST)
    command.run(*fields, "--config.quant.methods={}", "--stages=teacher,factorize,distill,merge", check=True)
    folder = tmp_path / "run" / "checkpoints"
    forms = {
        name: {layer["form"] for layer in artifacts.read_meta(folder / f"{name}.trained")["plan"].values()}
        for name in ("plain", "attentive", "rb_lra_kd")
    }
    assert forms == {
        "plain": {"dense", "low_rank"},
        "attentive": {"dense", "reparam"},
        "rb_lra_kd": {"dense", "reparam"},
    }
    for name in forms:
        meta = artifacts.read_meta(folder / name)
        assert {layer["form"] for layer in meta["plan"].values()} == {"dense", "low_rank"}
        assert meta["merge_difference"] <= 1e-5
