"""--dry_run finds what a run would find, before any work, and writes nothing."""

import re

import numpy as np
import pytest
from PIL import Image

from configs import digits, smallest
from lraqvit_jax import main
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import parse
from lraqvit_jax.run import opening, outlook

MISTAKES = {
    "data.train names the folder 'nothing/here', which does not exist": {"data.train": "folder:nothing/here"},
    "data.eval names the folder": {"data.eval": "folder:nothing/here"},
    "calibration_images is 9,999 and data.train has": {"factorize.calibration_images": 9999},
    "quant.calibration_images is 9,999 and data.train has": {"quant.calibration_images": 9999},
    "batch_size is 900,000,000: its images alone take": {"batch_size": 900_000_000},
    "no decomposition 'svdd'|svdd.*did you mean": {"factorize.baselines": ("svdd",)},
    "no/such/file.txt cannot be read": {"class_names": "no/such/file.txt"},
    "weights|no_such": {"weights": "timm:no_such.npz", "num_classes": 10},
}


def config(**changes):
    fields = digits.get_config()
    for name, value in changes.items():
        *outer, last = name.split(".")
        node = fields
        for part in outer:
            node = node[part]
        node[last] = value
    return parse(fields.to_dict())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "work"


@pytest.mark.parametrize("words", MISTAKES)
def test_what_a_run_would_refuse_is_refused(words, folder):
    with pytest.raises(UserError, match=words):
        main.dry_run(config(**MISTAKES[words]), str(folder))
    assert not folder.exists()


def test_a_stage_that_is_none_is_refused(folder):
    with pytest.raises(UserError, match="no stage 'evalute'; did you mean 'evaluate'"):
        main.dry_run(config(), str(folder), ["evalute"])


def test_few_images_are_enough_where_none_are_drawn(folder, tmp_path):
    for index in range(40):
        path = tmp_path / "images" / str(index % 10) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    changes = {"data.calibration": f"folder:{tmp_path}/images", "quant.calibration_images": 8}
    with pytest.raises(UserError, match=r"factorize\.calibration_images is 64 and data.calibration has 40"):
        main.dry_run(config(**changes), str(folder))
    plain = config(**changes, **{"factorize.baselines": ("svd",), "runs.rb_lra_kd.decomposition": "svd"})
    main.dry_run(plain, str(folder))


def test_time_and_files_are_said_before(folder, capsys):
    main.dry_run(config(**{"teacher.steps": 10_000_000}), str(folder))
    said = capsys.readouterr().out
    assert re.search(r"Estimated time on this machine: [0-9.]+ (min|h) \(teacher ", said)
    took, unit, flops, rate = re.search(
        r"machine: ([0-9.]+) (min|h) .* for ([0-9.e+]+) FLOPs at ([0-9.e+]+) a second", said
    ).groups()
    assert float(flops) / float(rate) == pytest.approx(float(took) * {"min": 60, "h": 3600}[unit], rel=0.1)
    assert "checkpoints/rb_lra_kd" in said
    assert "export/int8_wads" in said
    assert not folder.exists()


def test_time_grows_with_what_is_to_be_done(folder):
    def work(**changes):
        return outlook.work(opening.open_workspace(config(**changes), folder, write=False), {})

    work_of = [work(**{"teacher.steps": 10 * steps})["teacher"] for steps in (1, 10**6)]
    assert work_of[0] > 0
    assert work_of[1] == 10**6 * work_of[0]
    assert work(**{"teacher.steps": 0})["teacher"] == 0


def test_roundings_of_the_host_are_counted_for_every_model_of_a_search(folder, capsys, monkeypatch):
    seconds = outlook._gptq()
    assert all(0 < one * 768**2 < 10 for one in seconds)
    monkeypatch.setattr(outlook, "_gptq", lambda: seconds)

    def searched(**changes):
        fields, small = smallest.get_config(), digits.get_config()
        for name in ("model", "data", "preprocess", "batch_size", "eval_batch_size", "factorize", "teacher"):
            fields[name] = small[name]
        fields.update_from_flattened_dict(changes)
        return parse(fields.to_dict())

    of_goal, of_bound = (
        outlook.rounding(
            opening.open_workspace(searched(**{f"goal.{name}": 0.05, "goal.families": ()}), folder, write=False)
        )
        for name in ("max_drop", "max_mb")
    )
    assert of_goal["plan"] > 1.5 * of_bound["plan"] > 0
    assert of_goal["quantize"] > 0
    main.dry_run(searched(**{"goal.max_drop": 1.0}), str(folder))
    assert "in which the host rounds kernels" in capsys.readouterr().out
    assert outlook.rounding(opening.open_workspace(config(), folder, write=False)) == {}  # to nearest


def test_what_has_to_be_fetched_is_named_and_left_alone(folder, capsys):
    changes = {"weights": "timm:timm/vit_pico", "num_classes": 10, "data.eval": "tfds:imagenet2012@validation"}
    main.dry_run(config(**changes), str(folder))
    said = capsys.readouterr().out
    assert "may have to be fetched: weights timm:timm/vit_pico, data.eval tfds:imagenet2012@validation." in said
