"""`load` and what its model does, against ONNX Runtime and against the modules underneath."""

import contextlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import lraqvit_jax
from lraqvit_jax import weights
from lraqvit_jax.api import model as inference
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import class_names
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.plan.files import to_json
from lraqvit_jax.weights import artifacts
from tests.unit import numpy_vit, small

NAMES = [f"kind {index}" for index in range(10)]
PREPROCESS = Preprocess(8, crop_pct=0.8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def save(path, rng, names=NAMES):
    """Writes an artefact of low-rank layers with random parameters."""
    plan = small.plan("low_rank")
    meta = {"name": path.name, "model": "vit_pico", "num_classes": 10, "class_names": names, "config": {}, "notes": ""}
    meta |= {"plan": to_json(plan), "preprocess": PREPROCESS.to_json()}
    artifacts.save_artifact(path, small.params(plan, rng), meta)


def photos(rng, count=5):
    return [Image.fromarray(rng.integers(0, 256, (20, 12 + row, 3), np.uint8)) for row in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inference") / "one"
    save(folder, np.random.default_rng(0))
    return lraqvit_jax.load(folder)


def test_logits_are_those_of_onnx_runtime(model, rng, tmp_path):
    images = photos(rng)
    session = onnxruntime.InferenceSession(model.export_onnx(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])
    fed = np.stack([PREPROCESS(image) for image in images])
    want = session.run(None, {"images": fed})[0]
    np.testing.assert_allclose(model.logits(images), want, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(model.logits(images, batch_size=2), want, atol=1e-5 * np.abs(want).max())


def test_pil_images_paths_pixels_and_prepared_arrays_are_the_same_image(model, rng, tmp_path):
    image = photos(rng)[0]
    image.save(tmp_path / "one.png")
    want = model.logits([image])
    same = [image, tmp_path / "one.png", str(tmp_path / "one.png"), np.asarray(image), PREPROCESS(image)]
    for one in same:
        np.testing.assert_array_equal(model.logits(one), want)
    np.testing.assert_allclose(model.logits(same), np.repeat(want, 5, 0), rtol=1e-5)
    np.testing.assert_allclose(model.logits(np.stack([np.asarray(image)] * 2)), np.repeat(want, 2, 0), rtol=1e-5)


def strange():
    """JAX as people set it up who check their own programs."""
    stack = contextlib.ExitStack()
    for context in (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.transfer_guard("disallow"),
    ):
        stack.enter_context(context)
    return stack


def test_switches_of_jax_change_nothing(model, rng, tmp_path):
    images = photos(rng)
    want, accuracy = model.logits(images), model.evaluate(images, [0, 1, 2, 3, 4])
    model.save(tmp_path / "usual")
    with strange():
        restored = lraqvit_jax.load(tmp_path / "usual")
        np.testing.assert_array_equal(restored.logits(images), want)
        assert restored.evaluate(images, [0, 1, 2, 3, 4])[:3] == accuracy[:3]
        restored.save(tmp_path / "other")
    np.testing.assert_array_equal(lraqvit_jax.load(tmp_path / "other").logits(images), want)


def test_switches_of_jax_do_not_change_what_is_compressed(rng):
    images, params = photos(rng), small.params(small.plan("dense"), rng)
    options = {"preprocess": PREPROCESS, "budget": 0.6, "bits": 8}
    with strange():
        one = lraqvit_jax.compress(small.model(), params, images, **options)
    other = lraqvit_jax.compress(small.model(), params, images, **options)
    np.testing.assert_array_equal(one.logits(images), other.logits(images))


PIXELS = np.random.default_rng(1).integers(0, 256, (12, 15, 4), np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_an_array_is_the_pil_image_and_the_file_of_the_same_pixels(model, tmp_path, mode):
    pixels = {"L": PIXELS[..., 0], "RGB": PIXELS[..., :3], "RGBA": PIXELS}[mode]
    image = Image.fromarray(pixels)
    assert image.mode == mode
    image.save(tmp_path / "one.png")
    want = model.predict(tmp_path / "one.png")
    batch = pixels[None, ..., None] if mode == "L" else pixels[None]
    same = [image, pixels, jnp.asarray(pixels), np.asfortranarray(pixels), batch, [pixels], batch[0]]
    for one in same:
        assert model.predict(one) == want
    shown = Image.open(tmp_path / "one.png").convert("RGB")
    np.testing.assert_array_equal(model.logits(pixels), model.logits(PREPROCESS(shown)))
    mixed = [tmp_path / "one.png", image, pixels, batch[0], PREPROCESS(shown)]
    assert model.evaluate(mixed[:4], [NAMES.index(want[0][0][0])] * 4, batch_size=8).top1 == 100
    np.testing.assert_allclose(model.logits(mixed), np.repeat(model.logits(image), 5, 0), rtol=1e-5)


def test_a_batch_of_arrays_is_as_many_images(model):
    batch = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])
    for channels in (1, 3, 4):
        got = model.logits(batch[..., :channels])
        want = np.concatenate([model.logits(one[..., :channels]) for one in batch])
        np.testing.assert_allclose(got, want, rtol=1e-5)
    prepared = np.stack([PREPROCESS(Image.fromarray(one)) for one in batch])
    np.testing.assert_array_equal(model.logits(prepared), model.logits(batch))
    np.testing.assert_array_equal(model.logits(jnp.asarray(prepared)), model.logits(batch))


def test_predictions_are_the_largest_shares_by_name(model, rng):
    images = photos(rng, 3)
    logits = model.logits(images).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, classes in zip(shares, model.predict(images, top=4), strict=True):
        assert [name for name, _ in classes] == [NAMES[index] for index in sorted(range(10), key=lambda i: -row[i])[:4]]
        np.testing.assert_allclose([share for _, share in classes], sorted(row, reverse=True)[:4])
    assert len(model.predict(images[0], top=99)[0]) == 10


def test_evaluate_counts_what_predict_says(model, rng):
    images = photos(rng, 7)
    answers = [NAMES.index(classes[0][0]) for classes in model.predict(images, top=1)]
    labels = [answer if row < 4 else (answer + 1) % 10 for row, answer in enumerate(answers)]
    score = model.evaluate(images, labels)
    assert (score.images, round(score.top1 * 7 / 100)) == (7, 4)


def test_a_saved_model_loads_as_the_same_and_replaces_nothing(model, rng, tmp_path):
    again = lraqvit_jax.load(model.save(tmp_path / "new"))
    assert again.plan == model.plan
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, model.params))
    with pytest.raises(UserError, match="there already"):
        model.save(tmp_path / "new")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no images"),
        ("absent.jpg", r"absent\.jpg cannot be read"),
        (np.zeros((4, 4, 3)), r"floats \(4, 4, 3\)"),
        ([np.zeros((5, 4, 5), np.uint8)], r"uint8 \(5, 4, 5\)"),
        ([3], "is a int"),
        (3, "of type int, not an image"),
        (np.uint8(3), "of type uint8, not an image"),
        (np.zeros((5, 8, 8), np.uint8), r"array \(5, 8, 8\) .* \(images, height, width, 1\)"),
        (np.zeros((4, 4), bool), r"bool \(4, 4\)"),
        (np.zeros((4, 4), np.uint16), r"uint16 \(4, 4\)"),
        (np.full((4, 4, 3), -1), r"int64 \(4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        (np.zeros((2, 2, 4, 4, 3), np.uint8), r"uint8 \(2, 4, 4, 3\)"),
        (np.zeros(4, np.uint8), r"uint8 \(\)"),
        (jnp.zeros((4, 4, 3), jnp.bfloat16), r"floats \(4, 4, 3\)"),
        (np.zeros((1, 500), np.uint8), "100 times the other"),
        (Image.new("F", (4, 4)), "mode F"),
        (None, "of type NoneType, not an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_named(model, images, words):
    with pytest.raises(UserError, match=words) as error:
        model.predict(images)
    assert str(error.value).count(". ") == 0
    with pytest.raises(UserError):
        model.evaluate(images if not isinstance(images, str) else [images], [0])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 10], r"image 1 has the label 10, and the model has 10 classes, 0 to 9;"),
        ([-2, 0], r"image 0 has the label -2"),
        ([0.5, 1.0], "neither whole numbers nor names"),
        (np.eye(2), "neither whole numbers nor names"),
        ([0], "2 images and 1 labels"),
    ],
)
def test_labels_that_the_model_does_not_have_are_named(model, rng, labels, words):
    with pytest.raises(UserError, match=words):
        model.evaluate(photos(rng, 2), labels)


def test_of_a_work_directory_the_last_exported_artefact_is_taken(rng, tmp_path):
    for name in ("dense", "run", "int8", "other"):
        save(tmp_path / "checkpoints" / name, rng)
    with pytest.raises(UserError, match=r"no artefact 'int7'.*dense, int8, other, run"):
        inference.load(tmp_path, "int7")
    assert inference.load(tmp_path).name == "dense"  # nothing says more
    config = {"quant": {"source": "run"}, "export": {"artifacts": ["int8", "absent"]}}
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    assert inference.load(tmp_path).name == "int8"
    assert inference.load(tmp_path, "other").name == "other"
    config["export"]["artifacts"] = []
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    assert inference.load(tmp_path).name == "run"
    with pytest.raises(UserError, match="neither an artefact nor a work directory"):
        inference.load(tmp_path / "checkpoints")


def test_a_thousand_classes_are_imagenet_s_where_the_card_says_so(rng, tmp_path):
    path, tensors = (
        tmp_path / "vit_pico.npz",
        numpy_vit.random_tensors(rng, dim=32, depth=2, patch=4, side=2, classes=1000),
    )
    np.savez(path, **tensors)
    assert weights.read(f"timm:{path}").class_names == []
    published = tmp_path / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.npz"
    np.savez(published, **tensors)
    assert weights.read(f"timm:{published}").class_names[1] == "goldfish, Carassius auratus"
    card = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"tag": "augreg_in21k_ft_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(card))
    names = weights.read(f"timm:{path}").class_names
    assert (len(names), names[-1]) == (1000, "toilet tissue, toilet paper, bathroom tissue")
    assert weights.read(f"timm:{path}", num_classes=7).class_names == []
    own = {"label_names": [f"class {index}" for index in range(1000)]}
    (tmp_path / "config.json").write_text(json.dumps(card | own))
    assert weights.read(f"timm:{path}").class_names == own["label_names"]


def test_a_file_of_names_has_one_for_each_class(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\nEisbär, Thalarctos\n", encoding="utf-8")
    assert class_names.read(str(path), 2) == ["cat", "Eisbär, Thalarctos"]
    for count, text in ((3, "cat\ndog\n"), (2, "cat\n\n\n"), (3, "cat\n\ndog\n")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"names for {count} classes"):
            class_names.read(str(path), count)


def test_names_are_in_the_metadata_of_onnx(model, tmp_path):
    made = onnx.load(model.export_onnx(tmp_path / "one.onnx"))
    said = {one.key: one.value for one in made.metadata_props}
    assert json.loads(said["class_names"]) == NAMES


def test_the_package_is_imported_without_jax():
    code = "import sys, lraqvit_jax; assert {'load', 'Model'} <= set(dir(lraqvit_jax)); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert lraqvit_jax.load is inference.load
