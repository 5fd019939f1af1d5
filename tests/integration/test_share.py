"""Stage share: the folder of a repository, what reads it, and what is sent to the Hub."""

import json
import re

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image

import lraqvit_jax
from lraqvit_jax.weights import artifacts
from tests.integration import command

PUSH = "--config.hub.push=somebody/small-digits"
NO_TOKEN = "import huggingface_hub\nhuggingface_hub.get_token = lambda: None\n"
FAKE = """
import huggingface_hub, json, os
class Api:
    def create_repo(self, *words, **options):
        self.made = [list(words), options]
        return "https://huggingface.co/" + words[0]
    def upload_folder(self, **options):
        sent = {**options, "folder_path": str(options["folder_path"]), "made": self.made}
        sent["files"] = sorted(os.listdir(options["folder_path"]))
        open("sent.json", "w").write(json.dumps(sent))
huggingface_hub.get_token = lambda: "hf_none"
huggingface_hub.HfApi = Api
"""
"""The Hub, as the command sees it."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run that ends with the folder, and what it said."""
    workdir = tmp_path_factory.mktemp("share") / "run"
    (workdir / "search").mkdir(parents=True)
    (workdir / "search" / "frontier.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return workdir, command.digits(workdir, *command.FAST, PUSH, prelude=NO_TOKEN, check=True)


def chosen(workdir):
    return json.loads((workdir / "hub" / "config.json").read_text())["lraqvit_jax"]["artifact"]


def photo(folder):
    path = folder / "photo.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (11, 14, 3), np.uint8)).save(path)
    return path


def test_the_folder_has_everything_and_the_run_says_that_there_is_no_token(shared):
    workdir, done = shared
    there = {path.name for path in (workdir / "hub").iterdir()}
    assert {"README.md", "config.json", "preprocessor_config.json", "plan.json", "frontier.svg"} < there
    assert {"model.onnx", "model.safetensors"} < there
    assert "not pushed: there is no token" in done.stdout
    assert f"To take: {chosen(workdir)}," in done.stdout
    assert not list(workdir.glob(".hub*"))


def test_the_folder_gives_the_artefacts_logits_by_this_package_and_by_the_snippets_of_its_card(
    shared, tmp_path, capsys
):
    workdir, _ = shared
    folder, image = workdir / "hub", photo(tmp_path)
    model, wanted = lraqvit_jax.load(folder), lraqvit_jax.load(workdir, chosen(workdir))
    np.testing.assert_array_equal(model.logits(image), wanted.logits(image))
    assert (model.plan, model.preprocess, model.class_names) == (wanted.plan, wanted.preprocess, wanted.class_names)
    ours, onnx = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(ours.strip().splitlines()) <= 5
    exec(ours.replace("hub:somebody/small-digits", str(folder)).replace("photo.jpg", str(image)), {})
    assert repr(wanted.predict(image)) in capsys.readouterr().out
    fetched = 'huggingface_hub.hf_hub_download("somebody/small-digits", "model.onnx")'
    assert fetched in onnx
    names = {}
    exec(onnx.replace(fetched, repr(str(folder / "model.onnx"))).replace("photo.jpg", str(image)), names)
    np.testing.assert_allclose(names["logits"], wanted.logits(image), atol=0.02 * np.abs(names["logits"]).max())


def test_the_card_is_one_of_the_hubs(shared):
    workdir, _ = shared
    card, rows = huggingface_hub.ModelCard.load(workdir / "hub" / "README.md"), command.rows(workdir)
    row = rows[chosen(workdir)]
    assert card.data.pipeline_tag == "image-classification"
    assert (card.data.license, card.data.license_name) == ("other", "not-stated")
    assert {"onnx", "lraqvit_jax"} < set(card.data.tags)
    top1, top5 = card.data.eval_results
    assert (top1.metric_type, top1.metric_value) == ("accuracy", round(row["top1"] / 100, 6))
    assert (top5.metric_type, top5.metric_value) == ("top_5_accuracy", round(row["top5"] / 100, 6))
    index = eval_results_to_model_index("small-digits", card.data.eval_results)
    assert model_index_to_eval_results(index) == ("small-digits", card.data.eval_results)
    assert index == huggingface_hub.metadata_load(workdir / "hub" / "README.md")["model-index"]
    assert all(f"\n{name} " in card.text for name in rows)
    assert "states no licence" in card.text
    assert "frontier.svg" in card.text


def test_plan_and_preparation_are_the_artefacts(shared):
    workdir, _ = shared
    meta = artifacts.read_meta(workdir / "checkpoints" / chosen(workdir))
    assert json.loads((workdir / "hub" / "plan.json").read_text()) == meta["plan"]
    side = json.loads((workdir / "hub" / "config.json").read_text())["pretrained_cfg"]["input_size"]
    assert side == [3, meta["preprocess"]["size"], meta["preprocess"]["size"]]


def test_another_artefact_is_pushed_where_a_token_is_there(shared, tmp_path):
    workdir, _ = shared
    fields = (PUSH, "--stages=share", "--config.hub.artifact=dense", "--config.hub.private=True")
    fields = (*fields, "--config.hub.license=Apache-2.0")
    fake = FAKE.replace('"sent.json"', repr(str(tmp_path / "sent.json")))
    done = command.digits(workdir, *command.FAST, *fields, prelude=fake, check=True)
    assert "pushed to https://huggingface.co/somebody/small-digits" in done.stdout
    sent = json.loads((tmp_path / "sent.json").read_text())
    assert sent["made"] == [["somebody/small-digits"], {"private": True, "exist_ok": True}]
    assert (sent["repo_id"], sent["folder_path"]) == ("somebody/small-digits", str(workdir / "hub"))
    assert "README.md" in sent["files"]
    assert chosen(workdir) == "dense"
    assert huggingface_hub.ModelCard.load(workdir / "hub" / "README.md").data.license == "apache-2.0"
    teacher = lraqvit_jax.weights.load(f"timm:{workdir / 'hub'}")  # A dense one is weights again.
    assert teacher[2] == lraqvit_jax.load(workdir, "dense").preprocess


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["--config.hub.push=digits"], ["'digits'", "USER/NAME"]),
        (["--config.hub.push=a/b/c"], ["'a/b/c'", "USER/NAME"]),
        (["--config.hub.push=some body/x"], ["'some body/x'", "USER/NAME"]),
        (["--config.hub.push=a/b@main"], ["'a/b@main'"]),
        (["--stages=share"], ["hub.push is empty"]),
        ([PUSH, "--stages=share"], ["no result to choose from"]),
        ([PUSH, "--stages=share", "--config.hub.artifact=none"], ["hub.artifact is 'none'"]),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused(tmp_path, fields, words):
    done = command.digits(tmp_path / "run", *fields)
    assert done.returncode == 2, done.stderr[-2000:]
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run" / "checkpoints" / "dense").exists()


def test_a_dry_run_checks_the_name(tmp_path):
    done = command.digits(tmp_path / "run", "--config.hub.push=digits", "--dry_run")
    assert done.returncode == 2
    assert "USER/NAME" in done.stderr
