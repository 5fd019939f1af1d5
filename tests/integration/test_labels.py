"""A model's classes and the data's are matched by name, through the real command and in Python."""

import numpy as np
import pytest
from PIL import Image

import lraqvit_jax
from lraqvit_jax.base.errors import UserError
from tests.integration import command

LEVELS = {"bright_sky": 200, "dark": 20, "grey": 110}
"""Classes of a model, in its order, and how bright their pictures are."""


def write(folder, classes, count=4):
    """A sub-folder for each {its name: class of LEVELS}."""
    rng = np.random.default_rng(0)
    for name, level in classes.items():
        (folder / name).mkdir(parents=True)
        for row in range(count):
            pixels = rng.integers(LEVELS[level] - 20, LEVELS[level] + 20, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{row}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A work directory with a teacher that tells the classes apart."""
    folder = tmp_path_factory.mktemp("labels")
    data = f"folder:{write(folder / 'data', {name: name for name in LEVELS}, 12)}"
    train(folder / "work", data)
    return folder


def train(workdir, data, *arguments):
    sources = [f"--config.data.{role}={data}" for role in ("train", "eval")]
    settings = ["--config.teacher.steps=60", "--config.batch_size=16", "--config.augment=", "--config.num_classes=3"]
    return command.digits(workdir, *sources, *settings, *arguments, "--stages=teacher", check=True)


ORDERS = [
    {"Dark": "dark", "GREY": "grey", "bright-sky": "bright_sky"},
    {"dark": "dark", "grey": "grey"},
    {"0": "bright_sky", "2": "grey"},
]


@pytest.mark.parametrize("classes", ORDERS, ids="+".join)
def test_a_folder_in_another_order_or_without_some_classes_evaluates_right(made, tmp_path, capsys, classes):
    folder = write(tmp_path / "data", classes)
    model = lraqvit_jax.load(made / "work")
    score = model.evaluate(f"folder:{folder}")
    assert score.top1 == 100
    assert score.images == 4 * len(classes)
    assert "classes are" in capsys.readouterr().out


def test_classes_that_the_model_has_not_are_refused_and_a_table_of_names_mends_it(made, tmp_path):
    folder = write(tmp_path / "data", {"A": "grey", "B": "dark"})
    model = lraqvit_jax.load(made / "work")
    with pytest.raises(UserError, match=r"none of the model's: 'A', 'B' \(which has 'bright_sky', 'dark', 'grey'\)"):
        model.evaluate(f"folder:{folder}")
    (folder / "labels.csv").write_text("id,class\nA/0,grey\nA/1,GREY\nB/0.png,dark\n")
    score = model.evaluate(f"folder:{folder / 'labels.csv'}")
    assert (score.top1, score.images) == (100, 3)


@pytest.mark.parametrize("skip", ["fail", "skip"])
def test_the_command_says_how_labels_were_matched(made, tmp_path, skip):
    """Of weights that name their classes, with a folder of the same in another order."""
    folder = write(tmp_path / "data", ORDERS[0])
    if skip == "skip":
        (folder / "GREY" / "bad.png").write_bytes(b"no image")
    arguments = [f"--config.weights=artifact:{made / 'work' / 'checkpoints' / 'dense'}", "--config.model="]
    arguments += [f"--config.data.train=folder:{folder}?labels=none", f"--config.data.eval=folder:{folder}"]
    arguments += [f"--config.data.on_bad_image={skip}", "--config.num_classes=3", "--config.batch_size=8"]
    result = command.digits(
        tmp_path / "work", *arguments, "--config.teacher.steps=0", "--stages=teacher,evaluate", check=True
    )
    assert command.rows(tmp_path / "work")["dense"]["top1"] == 100
    said = "data.eval: 3 classes are matched by name with the model's 3: 'Dark' is 1 'dark'"
    assert result.stdout.count(said) == 1


def test_other_classes_are_refused_before_any_work(made, tmp_path):
    folder = write(tmp_path / "data", {"cat": "dark", "dog": "grey", "grey": "grey"})
    arguments = [f"--config.weights=artifact:{made / 'work' / 'checkpoints' / 'dense'}", "--config.num_classes=3"]
    arguments += [f"--config.data.train=folder:{folder}", f"--config.data.eval=folder:{folder}"]
    result = command.digits(tmp_path / "work", *arguments, "--config.teacher.steps=0", "--stages=teacher")
    assert result.returncode == 2
    assert "has 2 of 3 classes that are none of the model's: 'cat', 'dog'" in result.stderr
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_a_file_of_names_may_translate_or_order_the_classes_of_the_data(made, tmp_path):
    """Names that are the folder's own put the logits into their order; others are shown beside them."""
    for number, names in enumerate((["Himmel", "dunkel", "grau"], ["grey", "Bright sky", "dark"])):
        (tmp_path / "names.txt").write_text("\n".join(names))
        train(tmp_path / f"{number}", f"folder:{made / 'data'}", f"--config.class_names={tmp_path / 'names.txt'}")
        model = lraqvit_jax.load(tmp_path / f"{number}")
        assert model.class_names == names
        assert command.rows(tmp_path / f"{number}")["dense"]["top1"] == 100
        assert model.evaluate(f"folder:{made / 'data'}").top1 == 100
        ((best, *_),) = model.predict(made / "data" / "grey" / "0.png")
        assert best[0] == names[(2, 0)[number]]


def test_names_given_in_python_are_matched(made):
    model = lraqvit_jax.load(made / "work")
    paths = [made / "data" / name / "0.png" for name in ("grey", "dark", "dark")]
    assert model.evaluate(paths, ["Grey", "DARK", "dark"]).top1 == 100
    with pytest.raises(UserError, match="labels has 1 of 1 classes that are none of the model's: 'blue'"):
        model.evaluate(paths[:1], ["blue"])
