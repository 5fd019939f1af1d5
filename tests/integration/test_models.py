"""Other models than the demo's, and other heads than their weights', through the real command."""

import numpy as np
import pytest
from PIL import Image

from lraqvit_jax.data import sources
from lraqvit_jax.weights import artifacts
from tests.integration import command


@pytest.mark.slow
def test_a_swin_goes_through_every_stage(tmp_path):
    dynamic = "--config.quant.granularity=per_token_dynamic"
    command.digits(tmp_path, *command.FAST, "--config.model=swin_pico", dynamic, check=True)
    rows = command.rows(tmp_path)
    assert list(rows) == ["dense", "lra", "lra_whitened", "rb_lra_kd", "int8_naive", "int8_per_token", "int8_wads"]
    assert rows["rb_lra_kd"]["params"] < rows["dense"]["params"]
    assert rows["int8_wads"]["size_mb"] < 0.5 * rows["rb_lra_kd"]["size_mb"]
    for name in ("int8_naive", "int8_per_token", "int8_wads"):
        assert abs(rows[name]["top1"] - rows["rb_lra_kd"]["top1"]) < 5
    assert (tmp_path / "report.html").exists()


def two_digits(folder):
    """Zeros and ones in a folder a class, split as the embedded set is."""
    for role, split in (("train", "train"), ("eval", "val")):
        source = sources.load("embedded:digits", role)
        for index in range(len(source)):
            example = source[index]
            if example["label"] < 2:
                path = folder / split / ("zero", "one")[example["label"]] / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                example["image"].resize((8, 8), Image.Resampling.NEAREST).save(path)
    return f"folder:{folder}"


def test_a_pretrained_backbone_is_tuned_to_other_classes_but_not_taken_for_another_model(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    command.digits(first, "--config.teacher.steps=40", "--stages=teacher", check=True)
    data = two_digits(tmp_path / "digits")
    arguments = [
        f"--config.weights=artifact:{first / 'checkpoints' / 'dense'}",
        f"--config.data.train={data}",
        f"--config.data.eval={data}",
        "--config.num_classes=2",
        "--config.teacher.learning_rate=1e-3",
        "--config.teacher.steps=15",
        "--stages=teacher",
    ]
    command.digits(second, *arguments, check=True)
    assert command.rows(second)["dense"]["top1"] >= 95  # chance is 50
    old, new = (artifacts.load_artifact(path / "checkpoints" / "dense") for path in (first, second))
    assert new.params["head"]["kernel"].shape == (32, 2)
    # Tuned, not trained anew: the backbone is still near where it began.
    for path in ("patch_embed", "norm"):
        for name, value in old.params[path].items():
            moved = np.linalg.norm(new.params[path][name] - value) / np.linalg.norm(value)
            assert 0 < moved < 0.7  # two random starts are 1.4 apart

    wrong = command.digits(tmp_path / "third", arguments[0], "--config.model=swin_pico")
    assert wrong.returncode == 2
    assert "swin_pico" in wrong.stderr
    assert "vit_pico" in wrong.stderr
    assert not (tmp_path / "third").exists()
