"""A changed world: what was replaced under the same path is noticed, and never answered with yesterday's number."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import digits
from lraqvit_jax import config as config_lib
from lraqvit_jax import main
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import sources
from tests.unit import numpy_vit

PICO = {"dim": 32, "depth": 2, "patch": 2, "side": 4, "classes": 3}


def pictures(folder, count, shift=0):
    """So many grey pictures a class, as BMP: all files have the same size."""
    for label in range(3):
        for index in range(count):
            path = folder / f"class{label}" / f"{index}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng((label, index, shift)).integers(0, 255, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def save_weights(path, seed):
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **numpy_vit.random_tensors(np.random.default_rng(seed), **PICO))
    card = {"num_classes": 3, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}}
    (path.parent / "config.json").write_text(json.dumps({"architecture": "vit_pico", **card}))
    return path


@pytest.fixture
def config(tmp_path):
    fields = digits.get_config()
    fields.model, fields.weights = "", f"timm:{save_weights(tmp_path / 'weights' / 'vit_pico_patch2_8.npz', 0)}"
    fields.data.train = fields.data.eval = f"folder:{pictures(tmp_path / 'images', 40)}"
    fields.teacher.steps = fields.steps = 0
    fields.eval_batch_size = 40
    fields.factorize.calibration_images = 32
    fields.quant.methods = {}
    return config_lib.parse(fields.to_dict())


@pytest.fixture
def work(config, tmp_path):
    main.run(config, str(tmp_path / "work"), ["teacher", "factorize", "evaluate"])
    return tmp_path / "work"


def rows(work):
    return {row["name"]: row["top1"] for row in json.loads((work / "results.json").read_text())["rows"]}


def test_the_same_files_with_another_date_are_the_same(config, work, tmp_path):
    before = (work / "results.json").read_bytes()
    for path in (*tmp_path.rglob("*.bmp"), *tmp_path.rglob("*.npz")):
        os.utime(path, (1, 1))
    main.run(config, str(work), ["teacher", "factorize", "evaluate"])
    assert (work / "results.json").read_bytes() == before


def test_weights_that_were_replaced_are_refused(config, work, tmp_path):
    save_weights(tmp_path / "weights" / "vit_pico_patch2_8.npz", 1)
    with pytest.raises(
        UserError, match=r"vit_pico_patch2_8\.npz is not the file that this work directory was made from"
    ):
        main.run(config, str(work), ["evaluate"])


def test_a_card_that_was_replaced_is_refused(config, work, tmp_path):
    card = tmp_path / "weights" / "config.json"
    card.write_text(card.read_text().replace("1.0", "0.9"))
    with pytest.raises(UserError, match=r"config\.json is not the file"):
        main.run(config, str(work), ["evaluate"])


def test_weights_that_are_gone_are_needed_no_more(config, work, tmp_path):
    shutil.rmtree(tmp_path / "weights")
    main.run(config, str(work), ["evaluate"])


@pytest.mark.parametrize("change", ["replaced", "grown"])
def test_images_that_a_model_was_made_from_are_not_exchanged(config, work, tmp_path, change):
    pictures(tmp_path / "images", *((40, 1) if change == "replaced" else (41, 0)))
    with pytest.raises(UserError, match=r"images of data\.train \(folder:.*\) are not those"):
        main.run(config, str(work), ["evaluate"])


def test_images_of_an_evaluation_that_were_replaced_are_evaluated_anew(config, tmp_path, capsys):
    fields = config.to_dict()
    fields["data"]["eval"] = f"folder:{pictures(tmp_path / 'held_out', 10)}"
    config, work = config_lib.parse(fields), tmp_path / "other"
    stages = ["teacher", "factorize", "evaluate"]
    main.run(config, str(work), stages)
    before = rows(work)
    pictures(tmp_path / "held_out", 10, shift=7)
    main.run(config, str(work), stages)
    assert "dense: evaluated anew" in capsys.readouterr().out
    main.run(config, str(tmp_path / "fresh"), stages)
    assert rows(work) == rows(tmp_path / "fresh")
    assert before.keys() == rows(work).keys()


def test_an_edited_digit_of_the_results_is_noticed(config, work):
    text = (work / "results.json").read_text()
    (work / "results.json").write_text(text.replace('"n_images": 120', '"n_images": 121', 1))
    with pytest.raises(UserError, match="the row dense was changed; put it back, or delete it"):
        main.run(config, str(work), ["evaluate"])
    (work / "results.json").unlink()
    main.run(config, str(work), ["evaluate"])
    assert (work / "results.json").read_text() == text or rows(work)


def test_a_model_that_was_made_again_is_evaluated_again(config, work, tmp_path, capsys):
    shutil.rmtree(tmp_path / "work" / "checkpoints" / "dense")
    save_weights(tmp_path / "weights" / "vit_pico_patch2_8.npz", 1)
    main.run(config, str(work), ["teacher", "evaluate"])
    assert "dense: evaluated anew" in capsys.readouterr().out


def test_a_folder_that_grew_is_read_again_in_the_same_session(tmp_path):
    name = f"folder:{pictures(tmp_path / 'images', 3)}"
    first = sources.load(name, "train")
    assert sources.load(name, "train") is first
    pictures(tmp_path / "images", 5)
    assert len(sources.load(name, "train")) == 15
    assert len(sources.load(f"{name}?labels=none&images=12", "train")) == 12
    (tmp_path / "images" / "class3").mkdir()
    shutil.copy(tmp_path / "images" / "class0" / "0.bmp", tmp_path / "images" / "class3")
    assert sources.load(name, "train").class_names == ["class0", "class1", "class2", "class3"]


def test_a_table_of_labels_that_was_written_anew_is_read_again(tmp_path):
    pictures(tmp_path, 2)
    table = tmp_path / "labels.csv"
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.bmp"))
    table.write_text("file,label\n" + "".join(f"{name},{index % 2}\n" for index, name in enumerate(names)))
    name = f"folder:{tmp_path}"
    before = list(sources.load(name, "train").labels)
    table.write_text("file,label\n" + "".join(f"{name},{1 - index % 2}\n" for index, name in enumerate(names)))
    assert list(sources.load(name, "train").labels) == [1 - label for label in before]
    assert sources.digest(name, "train") != sources.digest(f"folder:{tmp_path / 'class0'}", "train")
