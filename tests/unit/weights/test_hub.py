"""What is sent to and fetched from the Hub, without it."""

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

import lraqvit_jax
from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.export import safetensors
from lraqvit_jax.weights import hub, processors
from tests.unit import small
from tests.unit.export.test_safetensors import artifact, logits


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that stands for somebody/one."""

    def fetch(name, file, revision=None):
        path = tmp_path / "one" / file
        if name != "somebody/one" or not path.exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {file}")
        return str(path)

    (tmp_path / "one").mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return tmp_path / "one"


def test_a_model_is_loaded_by_its_name_on_the_hub(rng, repository):
    one = artifact(small.plan("low_rank"), small.params(small.plan("low_rank"), rng))
    safetensors.save(one, repository / hub.WEIGHTS)
    (repository / "config.json").write_text("{}")
    model, images = lraqvit_jax.load("hub:somebody/one@main"), small.images(rng)
    np.testing.assert_array_equal(logits(model, images), logits(one, images))
    with pytest.raises(UserError, match="the hub does not give it"):
        lraqvit_jax.load("hub:somebody/other")
    with pytest.raises(UserError, match="write USER/NAME"):
        lraqvit_jax.load("hub:one")


def test_the_licence_is_that_of_the_card_on_the_hub(repository):
    assert weights.licence("timm:somebody/one") == ""
    (repository / "config.json").write_text("{}")
    assert weights.licence("timm:somebody/one") == ""
    (repository / "README.md").write_text("---\nlicense: mit\n---\n")
    assert weights.licence("timm:somebody/one@main") == "mit"
    assert weights.licence("timm:nobody/one") == ""


class Refuses:
    """A Hub that cannot be reached."""

    def create_repo(self, *words, **options):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")


def test_a_hub_that_is_not_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", Refuses)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert hub.push("somebody/one", tmp_path) == ""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_none")
    with pytest.raises(UserError, match=r"does not take somebody/one \(offline mode is enabled\).*hf upload") as error:
        hub.push("somebody/one", tmp_path)
    assert "hf_none" not in str(error.value)


@pytest.mark.parametrize("name", ["", "one", "a/b/c", "a b/c", "a/-b", "a--b/c", "a/b.git", "x" * 120 + "/y"])
def test_a_name_that_no_repository_has_is_refused(name):
    with pytest.raises(UserError, match="write USER/NAME"):
        hub.checked(name)


@pytest.mark.parametrize(
    "prepare",
    [
        Preprocess(224, 0.9, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        Preprocess(224, 0.875, "bilinear"),
        Preprocess(384, 1.0),
        Preprocess(28, 1.0, crop_mode="squash"),
        Preprocess(48, 0.8, crop_mode="squash"),
    ],
    ids=str,
)
def test_a_processor_that_is_written_is_read_as_the_same_preparation(rng, prepare):
    said, side = processors.preparation(processors.fields(prepare), "vit")
    found = Preprocess(side, **said)
    image = Image.fromarray(rng.integers(0, 256, (61, 83, 3), np.uint8))
    np.testing.assert_allclose(found(image), prepare(image), atol=1e-6)
