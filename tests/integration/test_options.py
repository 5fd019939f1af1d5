"""Options of the loop and of distillation, through the real command."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from lraqvit_jax import weights as loaders
from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import parse
from lraqvit_jax.run import metrics, opening
from lraqvit_jax.weights import artifacts
from tests.integration import command
from tests.unit import small

LAYER = "blocks_0/mlp/fc1"


def losses(workdir, run="teacher"):
    return np.array([row["loss"] for row in metrics.read(workdir / "metrics.jsonl") if row["run"] == run])


def test_bfloat16_compute_follows_float32_and_keeps_float32_parameters(tmp_path):
    for dtype in ("float32", "bfloat16"):
        command.digits(tmp_path / dtype, *command.FAST, "--stages=teacher", f"--config.dtype={dtype}", check=True)
    want, got = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert not np.array_equal(got, want)
    np.testing.assert_allclose(got, want, rtol=0.02)
    params = artifacts.load_artifact(tmp_path / "bfloat16" / "checkpoints" / "dense").params
    assert trees.get(params, LAYER)["kernel"].dtype == np.float32


@pytest.mark.slow
def test_frozen_base_trains_the_branch_alone_and_teacher_forcing_another_loss(tmp_path):
    own, forced = tmp_path / "own", tmp_path / "forced"
    stages = "--stages=teacher,factorize,distill"
    command.digits(own, *command.FAST, stages, check=True)
    options = ("--config.runs.rb_lra_kd.teacher_forced=True", "--config.runs.rb_lra_kd.train_base=False")
    command.digits(forced, *command.FAST, stages, *options, check=True)
    start, end = (
        trees.get(artifacts.load_artifact(forced / "checkpoints" / f"rb_lra_kd.{name}").params, LAYER)
        for name in ("start", "trained")
    )
    assert np.array_equal(start["u"], end["u"])
    assert np.array_equal(start["v"], end["v"])
    assert not np.array_equal(start["du"], end["du"])
    # With the teacher's input to every block, errors do not add up: the block loss is smaller from the first step.
    kd = [metrics.read(path / "metrics.jsonl")[6]["kd"] for path in (own, forced)]
    assert kd[1] < kd[0]


def test_the_preparation_of_images_can_be_said(tmp_path):
    config = digits.get_config()
    config.data.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bicubic", crop_pct=0.5)
    prepare = opening.open_workspace(parse(config.to_dict()), tmp_path, write=False).preprocess
    assert (prepare.mean, prepare.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (prepare.interpolation, prepare.crop_pct, prepare.size) == ("bicubic", 0.5, 8)
    config.data.mean = (0.1, 0.2)
    with pytest.raises(UserError, match="mean"):
        opening.open_workspace(parse(config.to_dict()), tmp_path, write=False)


def test_epochs_count_images(tmp_path):
    config = digits.get_config()
    config.batch_size, config.epochs = 100, 2
    opened = opening.open_workspace(parse(config.to_dict()), str(tmp_path), write=False, make_mesh=lambda _: small.MESH)
    assert opened.steps(6) == 30  # of 100 of 1,500 images


def test_a_finished_teacher_starts_another_run(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    command.digits(first, *command.FAST, "--stages=teacher", check=True)
    weights = f"--config.weights=artifact:{first / 'checkpoints' / 'dense'}"
    command.digits(second, *command.FAST, weights, "--config.teacher.steps=0", "--stages=teacher", check=True)
    assert command.rows(second)["dense"]["top1"] == command.rows(first)["dense"]["top1"]
    model, params, preprocess = loaders.load(f"artifact:{first / 'checkpoints' / 'dense'}")
    assert model.apply({"params": params}, preprocess(Image.new("L", (9, 9)))[None]).shape == (1, 10)
    meta = artifacts.read_meta(second / "checkpoints" / "dense")
    assert len(meta["weights"]["sha256"]) == 64


@pytest.mark.slow
def test_what_quantizers_can_do_beside_rounding(tmp_path):
    """One layer in float by the plan, fine-tuning, a budget in bytes, attention on integers, and a warning."""
    command.digits(tmp_path, *command.FAST, "--stages=evaluate")  # writes the plan, finds nothing to evaluate
    text = (tmp_path / "plan.json").read_text()
    before = '"head": {\n  "form": "quantized",\n  "rank": 0,\n  "bits": 8'
    assert before in text
    (tmp_path / "plan.json").write_text(text.replace(before, before.replace("quantized", "dense").replace("8", "0")))
    methods = (
        "--config.quant.methods.int8_naive.tuning_steps=3",
        "--config.quant.methods.int8_naive.granularity=per_token_dynamic",
        "--config.quant.methods.int8_per_token.attention=log_sqrt2",
        "--config.quant.methods.int8_wads.budget_mb=0.019",
        "--config.quant.methods.int8_wads.iterations=2",
        "--config.quant.calibration_images=4",
    )
    stages = "--stages=teacher,factorize,distill,merge,quantize"
    done = command.digits(tmp_path, *command.FAST, *methods, stages, check=True)
    assert "products see fewer tokens than they have channels" in done.stderr
    names = ("int8_naive", "int8_per_token", "int8_wads")
    tuned, attentive, narrow = (artifacts.load_artifact(tmp_path / "checkpoints" / name) for name in names)
    assert narrow.params["head"]["kernel"].dtype == np.float32
    assert tuned.params["patch_embed"]["kernel"]["qvalue"].dtype == np.int8
    qkv, fc1 = "blocks_0/attn/qkv", "blocks_0/mlp/fc1"
    assert 0 < tuned.plan[fc1].clip <= 1
    assert 0 < tuned.plan[fc1].clip_z <= 1
    assert not (tmp_path / "checkpoints" / "int8_naive.training").exists()
    assert (attentive.plan[qkv].attention, narrow.plan[qkv].attention) == ("log_sqrt2", "float")
    assert {layer.weight_bits for layer in narrow.plan.values() if layer.form == "quantized"} > {4}
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(narrow.params)) <= 0.019e6
