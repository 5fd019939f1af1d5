"""Sources and the pipeline: real images, fixed splits, a position that can be saved, exact rows on every host."""

import csv
import zipfile

import numpy as np
import pytest
from PIL import Image

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import augment, pipeline, sources
from lraqvit_jax.data.preprocess import Preprocess

DIGITS = Preprocess(8, interpolation="bilinear")
MOVE = augment.parse("random_affine(12, 0.1)|random_crop(1)|flip_lr")


def training(seed=0, rows=None, role="train", augmentation=MOVE, batch_size=50):
    source = sources.load("embedded:digits", role)
    return pipeline.training(source, DIGITS, augmentation, batch_size=batch_size, seed=seed, rows=rows)


def test_mnist5k_is_split_once_and_for_all_evenly_over_classes():
    train, held_out = sources.load("embedded:mnist5k", "train"), sources.load("embedded:mnist5k", "eval")
    assert (len(train), len(held_out)) == (4000, 1000)
    assert np.bincount(held_out.labels).tolist() == [100] * 10
    pixels = {image.tobytes() for image in train.images}
    # Real digits: none of the held-out ones is in the training set.
    assert not pixels & {image.tobytes() for image in held_out.images}
    assert 0.1 < held_out.images.mean() / 255 < 0.2
    assert train[0]["image"].size == (28, 28)


def test_calibration_reads_the_training_side():
    train, calibration = (sources.load("embedded:digits", role) for role in ("train", "calibration"))
    assert np.array_equal(train.images, calibration.images)


def test_batches_follow_from_the_seed_alone():
    first, again, other = next(training()), next(training()), next(training(seed=1))
    assert np.array_equal(first["image"], again["image"])
    assert not np.array_equal(first["label"], other["label"])
    assert first["image"].dtype == np.float32
    assert first["image"].shape == (50, 8, 8, 3)


def test_an_epoch_holds_every_image_once_and_the_next_is_another_order():
    batches = training(role="eval", augmentation=augment.parse(""), batch_size=297)
    first, second = next(batches), next(batches)
    sums = [np.sort(batch["image"].sum((1, 2, 3))) for batch in (first, second)]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-6)
    assert not np.array_equal(first["label"], second["label"])


def test_k_plus_k_steps_equal_2k_steps():
    whole, head, tail = training(), training(), training()
    want = [next(whole) for _ in range(8)]
    for _ in range(4):
        next(head)
    tail.set_state(head.get_state())
    for batch in want[4:]:
        assert np.array_equal(next(tail)["image"], batch["image"])


ROWS = [np.arange(24), np.arange(24, 48), np.array([0, 1, 2, 9, 40, 41, 47]), np.array([46])]
"""Of a batch of 48: two halves, some that lie apart, one of which no image is left in the last batch."""


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_process_gets_its_rows_of_the_one_global_batch(rows):
    whole, part = training(batch_size=48), training(batch_size=48, rows=rows)
    for _ in range(3):
        batch, own = next(whole), next(part)
        assert all(np.array_equal(own[name], batch[name][rows]) for name in ("image", "label"))


def test_rows_of_a_process_go_on_from_what_another_number_of_processes_saved():
    whole, part = training(batch_size=48), training(batch_size=48, rows=ROWS[2])
    for _ in range(3):
        next(whole)
    part.set_state(whole.get_state())
    assert np.array_equal(next(part)["image"], next(whole)["image"][ROWS[2]])


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_ordered_gives_a_process_its_rows_and_the_whole_every_image_once(rows):
    source = sources.load("embedded:digits", "eval")
    whole, part = (list(pipeline.ordered(source, DIGITS, batch_size=48, rows=given)) for given in (None, rows))
    real = np.concatenate([batch["label"][batch["mask"]] for batch in whole])
    assert np.array_equal(real, source.labels)
    for batch, own in zip(whole, part, strict=True):
        assert all(np.array_equal(own[name], batch[name][rows]) for name in ("image", "label", "mask"))


def write_images(folder, names):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (20 * index, 0, 255)).save(path)


def test_folder_of_class_named_folders(tmp_path):
    write_images(tmp_path, ["cat/a.png", "cat/deep/b.png", "ant/c.png"])
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    source = sources.load(f"folder:{tmp_path}", "train")
    assert source.class_names == ["ant", "cat"]
    assert [source[index]["label"] for index in range(len(source))] == [0, 1, 1]
    assert source[0]["image"].getpixel((0, 0)) == (40, 0, 255)


def test_folder_with_train_and_val(tmp_path):
    write_images(tmp_path, ["train/cat/a.png", "train/ant/b.png", "val/ant/c.png", "val/cat/d.png", "val/cat/e.png"])
    assert len(sources.load(f"folder:{tmp_path}", "train")) == 2
    assert len(sources.load(f"folder:{tmp_path}", "eval")) == 3


@pytest.mark.parametrize("zipped", [False, True])
def test_folder_with_labels_csv(tmp_path, zipped):
    write_images(tmp_path / "images", ["x.png", "sub/y.png"])
    if zipped:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for name in ("x.png", "sub/y.png"):
                archive.write(tmp_path / "images" / name, name)
    with (tmp_path / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["file", "label"], ["sub/y.png", 3], ["x.png", 0]])
    source = sources.load(f"folder:{tmp_path}", "eval")
    assert [source[index]["label"] for index in (0, 1)] == [3, 0]
    assert source[0]["image"].getpixel((0, 0)) == (20, 0, 255)
    assert len(source.class_names) == 4


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ("colour,price\nred,0\n", "columns file and label"),
        ("file,label\n", "at least one row"),
        ("file,label\nx.png,\n", "Line 2"),
        ("file,label\nx.png,0\nx.png,-1\n", "Line 3"),
        ("file,label\nx.png,0\nabsent.png,1\n", "absent.png"),
    ],
)
def test_broken_labels_csv_is_named(tmp_path, table, word):
    write_images(tmp_path / "images", ["x.png"])
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=word):
        sources.load(f"folder:{tmp_path}", "train")


def test_folder_without_images_is_named(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="no images"):
        sources.load(f"folder:{tmp_path}", "train")
