"""Sources without labels, and sources joined."""

import numpy as np
import pytest
from PIL import Image

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import pipeline, sources
from lraqvit_jax.data.augment import parse
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.sources import memory


def write(folder, *names):
    """Images that can be told apart by their first red value, 10 times their place in `names`."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * index, 0, 0)).save(path)
    return folder


def contents(source):
    """[(red, label)] of every example."""
    examples = [source[index] for index in range(len(source))]
    return [(example["image"].convert("RGB").getpixel((0, 0))[0], example["label"]) for example in examples]


def test_images_without_folders_of_classes_have_no_labels(tmp_path):
    write(tmp_path, "b.png", "a.JPEG", "c.txt.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    for role in ("train", "calibration"):
        source = sources.load(f"folder:{tmp_path}", role)
        assert contents(source)[1:] == [(0, -1), (20, -1)]
        assert source.class_names == []
    with pytest.raises(UserError, match="no labels to measure"):
        sources.load(f"folder:{tmp_path}", "eval")


def test_folders_of_classes_win_over_images_beside_them(tmp_path):
    source = sources.load(f"folder:{write(tmp_path, 'cover.png', 'ant/a.png', 'cat/b.png')}", "eval")
    assert contents(source) == [(10, 0), (20, 1)]
    assert source.class_names == ["ant", "cat"]


def test_an_unlabelled_training_side_beside_a_labelled_evaluation_side(tmp_path):
    write(tmp_path, "train/a.png", "train/b.png", "val/cat/c.png")
    assert contents(sources.load(f"folder:{tmp_path}", "train")) == [(0, -1), (10, -1)]
    assert contents(sources.load(f"folder:{tmp_path}", "eval")) == [(20, 0)]


def test_labels_of_any_source_can_be_left_out(tmp_path):
    write(tmp_path / "a", "ant/a.png", "cat/b.png")
    source = sources.load(f"folder:{tmp_path / 'a'}?labels=none", "train")
    assert contents(source) == [(0, -1), (10, -1)]
    assert source.class_names == []
    plain, bare = (sources.load(f"embedded:digits{option}", "train") for option in ("", "?labels=none"))
    assert np.array_equal(bare[3]["image"], plain[3]["image"])
    assert (len(bare), bare[3]["label"], bare.class_names) == (len(plain), -1, [])
    with pytest.raises(UserError, match="nothing to measure"):
        sources.load("embedded:digits?labels=none", "eval")


def test_some_images_of_a_source_lie_evenly_in_it():
    whole, some = (sources.load(f"embedded:digits{option}", "eval") for option in ("", "?images=7"))
    assert len(some) == 7
    assert some.class_names == whole.class_names
    for index in range(7):
        wanted = whole[int(index * len(whole) / 7)]
        assert some[index]["label"] == wanted["label"]
        assert some[index]["image"].tobytes() == wanted["image"].tobytes()
    bare = sources.load("embedded:digits?labels=none&images=3", "train")
    assert [len(bare), bare[0]["label"]] == [3, -1]


@pytest.mark.parametrize("count", ["0", "1000000"])
def test_more_images_than_there_are_is_an_error(count):
    with pytest.raises(UserError, match=r"asks for .* images of embedded:digits, which has"):
        sources.load(f"embedded:digits?images={count}", "eval")


@pytest.mark.parametrize(
    "option", ["images=", "images=-1", "labels=none&image=4", "labels=nun", "labels=none*5", "label=none", "labels="]
)
def test_another_option_is_named(option):
    with pytest.raises(UserError, match=r"write \?labels=none"):
        sources.load(f"embedded:digits?{option}", "train")


def test_joined_sources_follow_one_another(tmp_path):
    write(tmp_path / "a + b", "ant/a.png", "cat/b.png")
    write(tmp_path / "what?", "c.png", "d.png", "e.png")
    first, second = f"folder:{tmp_path / 'a + b'}", f"folder:{tmp_path / 'what?'}"
    source = sources.load(f"{first} + {second} + {first}?labels=none", "train")
    assert contents(source) == [(0, 0), (10, 1), (0, -1), (10, -1), (20, -1), (0, -1), (10, -1)]
    assert source.class_names == ["ant", "cat"]
    with pytest.raises(IndexError):
        source[7]
    assert sources.load(f"{second} + {second}", "train").class_names == []
    with pytest.raises(UserError, match="no labels to measure"):
        sources.load(f"{first} + {second}", "eval")
    with pytest.raises(UserError, match="did you mean 'folder'"):
        sources.load(f"{first} + fodler:x", "train")


def test_joined_sources_have_the_same_classes(tmp_path):
    write(tmp_path / "a", "ant/a.png")
    one = f"folder:{tmp_path / 'a'}"
    assert len(sources.load(f"{one} + {one}", "eval")) == 2
    with pytest.raises(UserError, match="different classes, and 'embedded:digits' numbers"):
        sources.load(f"{one} + embedded:digits", "train")


def test_joined_folders_of_other_classes_have_those_of_all(tmp_path):
    write(tmp_path / "a", "cat/a.png", "dog/b.png")
    write(tmp_path / "b", "ant/c.png", "dog/d.png", "dog/e.png")
    source = sources.load(f"folder:{tmp_path / 'a'} + folder:{tmp_path / 'b'} + folder:{tmp_path / 'b'}", "eval")
    assert source.class_names == ["ant", "cat", "dog"]
    assert contents(source) == [(0, 1), (10, 2), (0, 0), (10, 2), (20, 2), (0, 0), (10, 2), (20, 2)]
    assert source.labels == [label for _, label in contents(source)]


def test_the_pipeline_reads_them(tmp_path):
    joined = f"folder:{write(tmp_path, 'a.png', 'b.png')} + embedded:digits"
    source = sources.load(joined, "train")
    batches = pipeline.training(source, Preprocess(8), parse(""), batch_size=len(source), seed=0)
    assert np.bincount(next(batches)["label"] + 1)[0] == 2


def test_images_in_memory_are_one_or_several_and_are_told_apart(rng, tmp_path):
    batch = rng.integers(0, 256, (3, 5, 6, 4), np.uint8)
    write(tmp_path, "a.png")
    for images, count in (
        (batch, 3),
        (batch[..., :1], 3),
        (batch[0], 1),
        (batch[0, ..., 0], 1),
        (Image.fromarray(batch[0]), 1),
        (tmp_path / "a.png", 1),
        ([*batch, tmp_path / "a.png", Image.new("P", (4, 4))], 5),
    ):
        assert len(memory.Images(images)) == count
    for index, pixels in enumerate(batch):
        assert np.array_equal(memory.Images(batch)[index]["image"], Image.fromarray(pixels).convert("RGB"))
    red, blue = (Image.new("P", (4, 4)) for _ in range(2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert memory.Images(red).name != memory.Images(blue).name
    assert memory.Images(batch).name == memory.Images(batch.copy()).name
