"""Paths with letters of a pattern: what orbax writes there is found again, whichever folder has them."""

import os
import pathlib

import jax
import numpy as np
import pytest
from flax import linen as nn
from grain import MapDataset

from lraqvit_jax import models
from lraqvit_jax.base import files, links
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import preprocess
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.plan.records import dense
from lraqvit_jax.run.checkpoint import TrainCheckpoints
from lraqvit_jax.weights import artifacts

NAMES = ("a[b]", "run[0-9]", "[ab]", "a*", "a?", "a\\b", "lr=1e-4, seed [1]", "a#b", "50%20off", " a ", "s3:a")
MODEL = "vit_tiny_dim32_heads2_depth1"


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


@pytest.fixture(scope="module")
def artifact():
    plan = dense(models.spec(MODEL, num_classes=3, image_size=32).layers)
    model = models.create(MODEL, num_classes=3, image_size=32, plan=plan)
    params = nn.meta.unbox(model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"])
    prepare = preprocess.from_json(
        {"size": 32, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    )
    meta = {"name": "dense", "model": MODEL, "num_classes": 3, "class_names": [], "plan": to_json(plan)}
    return jax.tree.map(np.asarray, params), {**meta, "preprocess": prepare.to_json()}


@pytest.mark.parametrize("name", NAMES)
def test_an_artefact_is_whole_wherever_it_is_written(name, artifact, tmp_path):
    params, meta = artifact
    (tmp_path / "ab").mkdir()  # what some of the names match, as patterns
    place = tmp_path / name / "dense"
    artifacts.save_artifact(place, params, meta)
    restored = artifacts.load_artifact(place).params
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(params)))
    assert not any((tmp_path / "ab").iterdir())
    assert [path.name for path in (tmp_path / name).iterdir()] == ["dense"]


@pytest.mark.parametrize("name", ["[x]", "a*b"])
def test_an_artefact_may_itself_have_such_a_name(name, artifact, tmp_path):
    params, meta = artifact
    artifacts.save_artifact(tmp_path / name, params, meta)
    restored = artifacts.load_artifact(tmp_path / name).params
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(params)))


@pytest.mark.parametrize("name", ["a[b]", "run[0-9]", "a\\b"])
def test_training_goes_on_from_its_checkpoint(name, tmp_path):
    def batches():
        return iter(MapDataset.range(10).to_iter_dataset())

    first, state = batches(), {"w": np.arange(3, dtype=np.float32)}
    assert [next(first), next(first)] == [0, 1]
    checkpoints = TrainCheckpoints(tmp_path / name / "a.training", every=1)
    checkpoints.save(2, state, first)
    checkpoints.close()

    again, second = TrainCheckpoints(tmp_path / name / "a.training", every=1), batches()
    restored = again.restore({"w": np.zeros(3, np.float32)}, second)
    again.close()
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert next(second) == 2


def test_a_path_without_such_letters_stays_itself(tmp_path):
    assert links.plain(tmp_path / "a b") == tmp_path / "a b"


def test_all_processes_take_the_same_link(tmp_path):
    place = tmp_path / "a[b]" / "dense"
    assert links.plain(place) == links.plain(place)
    assert links.plain(place).resolve() == place.resolve()
    assert links.plain(place) != links.plain(tmp_path / "a[c]" / "dense")


def test_a_link_that_points_elsewhere_is_not_followed(tmp_path):
    link = links.plain(tmp_path / "a[b]" / "dense").parent
    link.unlink()
    link.symlink_to(tmp_path)
    with pytest.raises(UserError, match="rename it"):
        links.plain(tmp_path / "a[b]" / "dense")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "names nothing"),
        ("  ", "names nothing"),
        ("s3://bucket/run", "is an address"),
        ("gs://bucket/run", "is an address"),
        ("file:///tmp/run", "is an address"),
        ("~nobody-here/run", "is not a path"),
        ("x" * 300, "is not a path"),
        ("a\0b", "is not a path"),
        ("\udcff", "not text in UTF-8"),
    ],
)
def test_what_cannot_be_a_directory_is_refused(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        files.locate_new(name)
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_a_file_on_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run" / "deep"):
        with pytest.raises(UserError, match="file is a file"):
            files.locate_new(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        files.locate_new(tmp_path / "closed" / "run")


def test_a_current_directory_that_is_gone_is_refused(tmp_path):
    before = pathlib.Path.cwd()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    try:
        (tmp_path / "gone").rmdir()
        with pytest.raises(UserError, match="current directory"):
            files.locate_new("run")
    finally:
        os.chdir(before)
