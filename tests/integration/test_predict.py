"""`python -m lraqvit_jax.predict` on a model that the command made from folders of two classes."""

import json

import numpy as np
import pytest
from PIL import Image

from lraqvit_jax import predict
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import parse
from lraqvit_jax.run import opening
from lraqvit_jax.weights import artifacts
from tests.integration import command

NAMES = {"0_dark": "night sky", "1_bright": "snow, fresh snow"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of dark and bright images, and a work directory with a teacher that tells them apart."""
    folder, rng = tmp_path_factory.mktemp("predict"), np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        (folder / "data" / name).mkdir(parents=True)
        for row in range(20):
            pixels = rng.integers(128 * index, 128 * index + 128, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{row:02}.png")
    (folder / "names.txt").write_text("\n".join(NAMES.values()) + "\n")
    data = [f"--config.data.{role}=folder:{folder / 'data'}" for role in ("train", "eval")]
    names = f"--config.class_names={folder / 'names.txt'}"
    command.digits(folder / "work", *data, names, "--config.teacher.steps=30", "--stages=teacher", check=True)
    return folder


def run(*arguments):
    return command.run(*arguments, module="predict")


def test_the_class_of_the_folder_is_printed_for_each_image(made):
    result = run(made / "data" / "1_bright", made / "data" / "0_dark" / "03.png", "--workdir", made / "work")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3 * 21
    for image in range(21):
        path, best, second = lines[3 * image : 3 * image + 3]
        want = NAMES["1_bright" if "1_bright" in path else "0_dark"]
        assert best.split("%")[1].strip() == want
        shares = [float(line.split("%")[0]) for line in (best, second)]
        assert shares[0] >= shares[1]
        assert sum(shares) == pytest.approx(100, abs=0.2)


def test_a_mistake_is_one_sentence(made):
    result = run(made / "data", "--workdr", made / "work", "--workdir", made / "work")
    assert (result.returncode, result.stdout) == (2, "")
    assert "did you mean '--workdir'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.png", "--workdir", "work"], r"absent\.png cannot be read"),
        (["data", "--workdir", "data"], "neither an artefact nor a work directory"),
        (["data", "--workdir", "work", "--name", "dens"], "no artefact 'dens'"),
        (["work", "--workdir", "work"], "has no images"),
        (["data", "--workdir", "work", "--top", "0"], "top is 0"),
        (["data"], "--workdir"),
    ],
)
def test_mistakes_name_the_thing(made, arguments, words):
    with pytest.raises(UserError, match=words):
        predict.command([str(made / word) if word in ("data", "work") else word for word in arguments])


def test_a_work_directory_of_an_older_version_goes_on(made):
    """Fields that config.json does not have yet take their defaults; others still must be the same."""
    written = made / "work" / "config.json"
    whole = written.read_text()
    claim = json.loads(whole)
    for name in ("class_names", "remat", "mix"):
        del claim["config"][name]
    del claim["config"]["teacher"]["beta2"]
    del claim["config"]["quant"]["methods"]["int8_wads"]["group"]
    written.write_text(json.dumps(claim))
    try:
        config = json.loads(whole)["config"]
        opening.open_workspace(parse(config), made / "work", write=False)
        config["teacher"]["beta2"] = 0.9
        with pytest.raises(UserError, match=r"teacher\.beta2 was 0\.999 and is 0\.9"):
            opening.open_workspace(parse(config), made / "work", write=False)
        config["teacher"]["beta2"] = 0.999
        config["quant"]["methods"]["int8_wads"]["group"] = 8
        with pytest.raises(UserError, match=r"int8_wads\.group was 0 and is 8"):
            opening.open_workspace(parse(config), made / "work", write=False)
    finally:
        written.write_text(whole)


def test_names_of_a_folder_are_kept_without_a_file_of_names(made):
    config = artifacts.read_meta(made / "work" / "checkpoints" / "dense")["config"]
    config |= {"class_names": "", "num_classes": 2}
    assert opening.open_workspace(parse(config), made / "other").class_names == [*NAMES]
