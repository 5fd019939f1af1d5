"""The card of a repository and its config.json, read back by huggingface_hub."""

import pytest
from huggingface_hub import ModelCard

from lraqvit_jax.export import repository
from lraqvit_jax.plan import records as plan_lib
from tests.unit import small
from tests.unit.export.test_safetensors import artifact

ROW = {"name": "int8", "size_mb": 5.8, "top1": 87.7, "top5": 98.1, "n_images": 1000}
SAID = repository.Shared(
    repository="somebody/vit-tiny-small",
    name="int8_per_token_dynamic",
    source="timm:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k@main",
    licence="Apache-2.0",
    row=ROW,
    dense={"size_mb": 22.9, "top1": 88.5},
    table="name top-1",
    told={"input": {"dtype": "float32"}, "preprocess": {"size": 224, "crop_pct": 0.9}},
    files={"README.md": 3, "model.onnx": 5_900_000, "model.dynamic.tflite": 5_800_000, "model.safetensors": 5_800_000},
    images={
        "training": "tfds:imagenet2012@train",
        "evaluation": "folder:/home/me/labelled",
        "calibration": "folder:/home/me/photos?labels=none",
    },
    trained=False,
)


def card(**fields):
    return ModelCard(repository.text(SAID._replace(**fields)))


def test_the_metadata_say_where_it_came_from():
    made = card()
    assert (made.data.license, made.data.library_name, made.data.pipeline_tag) == (
        "apache-2.0",
        "onnx",
        "image-classification",
    )
    assert made.data.base_model == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert made.data.base_model_relation == "quantized"
    assert made.data.datasets is None
    assert {"8-bit", "litert"} < set(made.data.tags)
    (top1, _) = made.data.eval_results
    assert (top1.metric_value, top1.dataset_name, top1.dataset_type) == (0.877, "labelled", "imagefolder")
    assert "**5.800 MB, 87.70 % of 1,000 images right (top-1)**; the dense model: 22.900 MB, 88.50 %." in made.text
    assert "/home/me" not in str(made)
    assert "training" not in made.text


def test_what_was_trained_here_has_its_data():
    made = card(trained=True, source="", licence="")
    assert made.data.datasets == ["ILSVRC/imagenet-1k"]
    assert made.data.base_model is None
    assert (made.data.license, made.data.license_name) == ("other", "not-stated")
    assert "Who trained these weights states no licence." in made.text


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("cc-by-nc-4.0", ("cc-by-nc-4.0", None)),
        ("Our own: ask", ("other", "our-own-ask")),
        ("", ("other", "not-stated")),
    ],
)
def test_a_licence_that_the_hub_does_not_have_is_another_one(licence, fields):
    made = card(licence=licence)
    assert (made.data.license, made.data.license_name) == fields
    assert (licence or "ask where they came from") in made.text


def test_nothing_is_said_of_a_model_that_nobody_measured():
    made = card(row=None)
    assert made.data.eval_results is None
    assert "%" not in made.text.partition("```")[0]


def test_pixels_and_squashed_photographs_in_the_snippet():
    told = {"preprocess": {"size": 8, "crop_mode": "squash"}, "onnx_contract": {"input": {"dtype": "uint8"}}}
    text = card(told=told | {"input": {"dtype": "float32"}}).text
    assert "images = np.asarray(image)[None]" in text
    assert "image.resize((8, 8), 3)" in text
    assert "image.crop" not in text


@pytest.mark.parametrize(
    ("model", "size", "name"),
    [
        ("vit_tiny", 224, "vit_tiny_patch16_224"),
        ("deit_base", 384, "deit_base_patch16_384"),
        ("swin_tiny", 224, "swin_tiny_patch4_window7_224"),
        ("swin_base_window12", 384, "swin_base_patch4_window12_384"),
        ("vit_tiny_depth3", 224, ""),
        ("vit_pico", 8, ""),
    ],
)
def test_timms_name_of_a_model(model, size, name):
    assert repository._architecture(model, size) == name


def test_a_model_that_timm_does_not_load_names_no_architecture(rng, monkeypatch):
    monkeypatch.setattr(repository, "_architecture", lambda model, size: "vit_tiny_patch16_224")
    one = artifact(small.plan("low_rank"), small.params(small.plan("low_rank"), rng))
    one.meta["name"] = "lra"
    dense = artifact(plan_lib.dense(small.LAYERS), {})
    dense.meta["name"] = "dense"
    assert "architecture" not in repository.config(one)
    assert repository.config(one, "expanded")["architecture"] == "vit_tiny_patch16_224"
    said = repository.config(dense)
    assert said["architecture"] == "vit_tiny_patch16_224"
    assert said["label_names"] == one.meta["class_names"]
    assert said["pretrained_cfg"]["crop_pct"] == one.preprocess.crop_pct
