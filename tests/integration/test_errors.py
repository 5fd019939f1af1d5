"""A user's mistake, through the real command: one sentence, exit code 2, nothing overwritten."""

import json
import pathlib
import zipfile

import pytest
from PIL import Image

from tests.integration import command

FEW = ("--config.plan.method=by_kind", "--config.plan.mlp_rank=8")


def refused(workdir: pathlib.Path, *arguments: str, **options) -> str:
    """Runs the command, demands a refusal, and returns its sentence."""
    before = command.files(workdir) if workdir.exists() else {}
    result = command.digits(workdir, *arguments, **options)
    assert result.returncode == 2, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    after = command.files(workdir) if workdir.exists() else {}
    assert {name: after.get(name) for name in before} == before
    return lines[0]


MISTAKES = [
    (["--config.stepz=3"], ["config.stepz", "did you mean 'config.steps'"]),
    (["--config.runs.rb_lra_kd.branhc=wr"], ["did you mean 'config.runs.rb_lra_kd.branch'"]),
    (["--config.steps=many"], ["steps", "many"]),
    (["--quiet", "--verbose"], ["the opposite"]),
    (["--config.data.eval="], ["data.eval is empty"]),
    (["--stages=techer"], ["'techer'", "did you mean 'teacher'"]),
    (["--wrkdir=x"], ["'wrkdir'", "did you mean 'workdir'"]),
    ([*FEW, "--config.plan.attention_rank=24"], ["blocks_0/attn/qkv", "rank 24", "ranks 1 to 23"]),
    (["--config.plan.budget=1.5"], ["plan.budget", "1.5"]),
    (["--config.data.train=folder:no/such/place"], ["no/such/place", "does not exist"]),
    (["--config.data.eval=embedded:digit"], ["'digit'", "did you mean 'digits'"]),
    (["--config.data.train=tfds:not_a_set"], ["not_a_set"]),
    (["--config.data.train=tfds:mnist", "--config.data.data_dir=nowhere"], ["mnist", "not prepared"]),
    (["--config.plan.groups=(64,)"], ["plan.groups wants plan.widths"]),
    (["--config.data.on_bad_image=ignore"], ["data.on_bad_image", "'ignore'", "fail, skip"]),
    (["--config.augment=flip_rl"], ["flip_rl", "did you mean 'flip_lr'"]),
    (["--config.runs.rb_lra_kd.branch=wrong"], ["'wrong'", "small_random"]),
    (["--config.runs.rb_lra_kd.decomposition=svdd"], ["svdd", "did you mean 'svd'"]),
    (["--config.quant.methods.int8_wads.method=wad"], ["'wad'", "did you mean 'wads'"]),
    (["--config.model=vit_pica"], ["vit_pica", "did you mean 'vit_pico'"]),
    (["--config.weights=artifact:no/such/place"], ["no/such/place"]),
    (["--config.preprocess.size=9"], ["patches of 4", "preprocess.size"]),
    (["--stages=distill"], ["rb_lra_kd.start", "--stages=factorize"]),
    (["--config.sharding.rank=('tenser',)"], ["sharding.rank", "did you mean 'tensor'"]),
    (["--config.batch_size=30"], ["batch_size is 30", "32 would do"], 8),
    (["--config.mesh.data=3"], ["data 3 x fsdp 1 x tensor 1"], 8),
    (["--coordinator=localhost"], ["do not fit"]),
    (["--num_processes=2"], ["go with --coordinator"]),
    (["--distributed"], ["cannot join the others"]),
    (["lowrnk"], ["'lowrnk'; did you mean 'lowrank'"]),
    (["lowrank", "--config.grid.methods=('logit',)"], ["'logit'; did you mean 'logits'"]),
    (["lowrank", "--config.grid.runs=('rb_lra',)"], ["'rb_lra', which is not a run; did you mean 'rb_lra_kd'"]),
    (["lowrank", "--config.plan.unit=parms"], ["'parms'; did you mean 'params'"]),
    (["latency", "--config.latency.runtimes=('onnxruntim',)"], ["'onnxruntim'; did you mean 'onnxruntime'"]),
    (["peers", "--config.peers.peers=('nncf_quantise',)"], ["'nncf_quantise'", "did you mean 'nncf_quantize'"]),
    (["peers"], ["peers.models has 'dense'", "run its stage first"]),
    (["quant", "--config.quant_grid.widths=('w2a8',)"], ["quant_grid.widths has 'w2a8'"]),
    (["quant", "--config.quant_grid.only=('mine',)"], ["quant_grid.only has 'mine', which is not a method"]),
    (["quant", "--config.quant_grid.sources=('none',)", *command.FAST], ["There is no whole artefact"]),
]
"""Arguments, words of the answer, and how many devices there are, if not one. The first argument is a measurement's
name for `lraqvit_jax.bench`."""


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[0][-1].lstrip("-"))
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, mistake):
    arguments, words, *devices = mistake
    options = {"module": "main" if arguments[0].startswith("--") else "bench", "devices": (*devices, 1)[0]}
    answer = command.digits(tmp_path / "work", *arguments, **options)
    assert answer.returncode == 2, answer.stderr[-2000:]
    assert "Traceback" not in answer.stderr
    (sentence,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in sentence


def test_the_command_itself_ends_with_code_2_and_writes_nothing(tmp_path):
    wrong = refused(tmp_path / "work", "--config.model=vit_pica", how=command.real)
    assert "'vit_pica'; did you mean 'vit_pico'" in wrong
    assert not (tmp_path / "work").exists()


def test_missing_config_file(tmp_path):
    result = command.run("--config=configs/absent.py", f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert "configs/absent.py" in result.stderr
    assert "Traceback" not in result.stderr


def test_work_directory_of_another_config(tmp_path):
    command.digits(tmp_path, *command.FAST, "--stages=teacher", check=True)
    sentence = refused(tmp_path, *command.FAST, "--config.seed=7")
    assert "seed was 0 and is 7" in sentence


def test_plan_changed_after_it_was_used(tmp_path):
    command.digits(tmp_path, *command.FAST, "--stages=teacher,factorize", check=True)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["blocks_0/mlp/fc1"]["rank"] = 5
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert "plan.json was changed" in refused(tmp_path, *command.FAST)


def test_plan_edited_before_it_is_used_is_honoured_and_checked(tmp_path):
    command.digits(tmp_path, *command.FAST, "--stages=evaluate")  # claims the directory, has nothing to evaluate
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["blocks_0/mlp/fc1"]["rank"] = 25
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert "blocks_0/mlp/fc1" in command.digits(tmp_path, *command.FAST, "--dry_run", check=True).stdout
    plan["blocks_0/mlp/fc1"]["rank"] = 26  # 32 x 128 breaks even at 25.6
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert "ranks 1 to 25" in refused(tmp_path, *command.FAST, "--dry_run")


def images(folder: pathlib.Path, count: int = 40) -> None:
    for index in range(count):
        path = folder / f"{index % 2}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * index).save(path)


def test_unreadable_image_is_named(tmp_path):
    images(tmp_path / "data")
    (tmp_path / "data" / "1" / "39.png").write_bytes(b"no image")
    arguments = (*command.FAST, f"--config.data.train=folder:{tmp_path / 'data'}", "--config.batch_size=40")
    sentence = refused(tmp_path / "work", *arguments, "--config.num_classes=10", "--stages=teacher")
    assert "1/39.png" in sentence


def test_unreadable_images_are_skipped_counted_and_listed_where_the_config_says_so(tmp_path):
    """Also in a directory that stopped at one."""
    images(tmp_path / "data")
    (tmp_path / "data" / "1" / "39.png").write_bytes(b"no image")
    source = f"folder:{tmp_path / 'data'}"
    arguments = (*command.FAST, f"--config.data.train={source}", f"--config.data.eval={source}", "--stages=teacher")
    arguments = (*arguments, "--config.batch_size=40", "--config.num_classes=10")
    assert "on_bad_image" in refused(tmp_path / "work", *arguments)
    command.digits(tmp_path / "work", *arguments, "--config.data.on_bad_image=skip", check=True)
    (row,) = command.rows(tmp_path / "work").values()
    assert row["n_images"] == 39
    assert "bad images skipped: 1" in row["notes"]
    lines = (tmp_path / "work" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["data.train", "data.eval"]


def test_truncated_archive_is_named(tmp_path):
    data = tmp_path / "data"
    images(data / "images")
    with zipfile.ZipFile(data / "images.zip", "w") as archive:
        for path in sorted((data / "images").rglob("*.png")):
            archive.write(path, str(path.relative_to(data / "images")))
    whole = (data / "images.zip").read_bytes()
    (data / "images.zip").write_bytes(whole[: len(whole) // 2])
    (data / "labels.csv").write_text("file,label\n0/00.png,0\n")
    assert "images.zip" in refused(tmp_path / "work", f"--config.data.train=folder:{data}")


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    arguments = (*command.FAST, "--config.teacher.learning_rate=1e30", "--config.teacher.warmup=0", "--stages=teacher")
    sentence = refused(tmp_path, *arguments)
    assert "not finite at step" in sentence
    assert "learning rate" in sentence
    assert not (tmp_path / "checkpoints" / "dense").exists()
