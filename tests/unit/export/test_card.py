"""The model card beside the exported files."""

import json

import pytest

from lraqvit_jax import weights
from lraqvit_jax.export import card

ONE = {
    "name": "int8",
    "bytes": {"onnx": 5_800_000, "stablehlo": 6_000_000},
    "top1": {"onnx": 87.7, "model": 88.3},
    "labelled_images": 1000,
    "input": {
        "name": "images",
        "shape": ["batch", 8, 8, 3],
        "dtype": "float32",
        "layout": "NHWC",
        "colours": "RGB",
        "values": "(pixel / 255 - mean) / std",
    },
    "preprocess": {"size": 8, "mean": [0.5, 0.5, 0.5]},
    "class_names": ["a", "b"],
}


def front(text):
    """The fields before the text, each a line of JSON, which is YAML."""
    _, head, _ = text.split("---\n", 2)
    return {name: json.loads(value) for name, _, value in (line.partition(": ") for line in head.splitlines())}


def test_the_card_says_what_is_there_and_where_it_came_from():
    text = card.text("name top-1", [ONE], "To take: int8.", "timm:timm/vit_tiny@main", "apache-2.0", "folder:photos")
    fields = front(text)
    assert (fields["license"], fields["base_model"]) == ("apache-2.0", "timm/vit_tiny")
    for part in (
        "`int8.onnx`: 5.800 MB, right on 87.70 % of 1,000 images",
        "`int8.stablehlo`: 6.000 MB\n",
        '"size": 8',
    ):
        assert part in text
    assert "name top-1" in text
    assert "To take: int8." in text


def test_a_licence_that_nobody_stated_is_not_made_up_and_a_private_path_stays_private():
    text = card.text("", [ONE], "", "timm:/home/somebody/secret/vit_tiny.npz", "", "folder:/home/somebody/photos")
    assert front(text)["license"] == "unknown"
    assert "base_model" not in front(text)
    assert "not stated by the weights' card" in text
    assert "# vit_tiny.npz, compressed" in text
    assert "somebody" not in text
    assert "base_model" not in front(card.text("", [ONE], "", "timm:weights/vit_tiny.npz", "", "folder:photos"))


@pytest.mark.parametrize(
    ("name", "content", "licence"),
    [
        ("config.json", '{"pretrained_cfg": {"license": "apache-2.0"}}', "apache-2.0"),
        ("config.json", '{"license": "mit"}', "mit"),
        ("config.json", '{"license": 3}', ""),
        ("README.md", "---\nlicense: cc-by-nc-4.0\ntags: []\n---\n# A model\nlicense: none", "cc-by-nc-4.0"),
        ("README.md", "# A model\nlicense: none", ""),
        ("other.txt", "license: mit", ""),
    ],
)
def test_the_licence_is_what_the_card_says(tmp_path, name, content, licence):
    (tmp_path / name).write_text(content)
    assert weights.licence(f"timm:{tmp_path / 'vit_tiny.npz'}") == licence
