"""What a program may hand over: every usual shape, type and origin is one right answer or one sentence."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import freeze
from PIL import Image

import lraqvit_jax
from lraqvit_jax import predict
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data.preprocess import Preprocess
from tests.unit import small

PREPROCESS = Preprocess(8, crop_pct=1.0)
PIXELS = np.random.default_rng(3).integers(0, 256, (11, 13, 3)).astype(np.uint8)
READY = PREPROCESS(Image.fromarray(PIXELS))
ALPHA = np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (11, 13, 3)).astype(np.uint8)) for _ in range(4)]
    params = small.params(small.plan("dense"), rng)
    return lraqvit_jax.compress(small.model(), params, photos, preprocess=PREPROCESS, budget=1, bits=0)


class Tensor:
    """Of a library that is not there: all that is known of it is __array__."""

    def __init__(self, values, problem=None):
        self._values, self._problem = values, problem

    def __array__(self, dtype=None, copy=None):
        if self._problem:
            raise self._problem
        return self._values


SAME = {
    "channels last": PIXELS,
    "channels first": PIXELS.transpose(2, 0, 1),
    "alpha last": ALPHA,
    "alpha first": ALPHA.transpose(2, 0, 1),
    "several, channels first": PIXELS.transpose(2, 0, 1)[None],
    "several": PIXELS[None],
    "a list": [PIXELS],
    "a generator": (one for one in [PIXELS]),
    "not contiguous": np.asfortranarray(PIXELS),
    "whole numbers of 64 bits": PIXELS.astype(np.int64),
    "of JAX": jnp.asarray(PIXELS),
    "of another library": Tensor(PIXELS),
    "prepared": READY,
    "prepared, channels first": READY.transpose(2, 0, 1),
    "prepared, of 64 bits": READY.astype(np.float64),
    "prepared, of JAX": jnp.asarray(READY),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_picture_has_one_answer(model, name):
    want = model.logits(Image.fromarray(PIXELS))
    got = model.logits(SAME[name])
    assert got.shape == (1, 10)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_fewer_bits_of_a_prepared_picture_move_its_answer_by_as_much(model):
    want = model.logits(READY)
    for kind in (np.float16, jnp.bfloat16):
        np.testing.assert_allclose(model.logits(jnp.asarray(READY, kind)), want, atol=0.05)


def test_the_content_of_a_file_is_a_picture(model, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    np.testing.assert_array_equal(model.logits(content), model.logits(tmp_path / "one.png"))
    np.testing.assert_allclose(model.logits([content, PIXELS])[0], model.logits(content)[0], atol=1e-6)


REFUSED = {
    "16 bits": (PIXELS.astype(np.uint16), "array of uint16"),
    "too large": (PIXELS.astype(np.int64) * 300, "array of int64"),
    "negative": (PIXELS.astype(np.int64) - 300, "array of int64"),
    "yes and no": (PIXELS > 3, "array of bool"),
    "floats of another size": (PIXELS / 255, r"floats \(11, 13, 3\)"),
    "floats to 1": ((READY + 1) / 2, "floats from 0 to 1, which are pixels"),
    "floats to 255": ((READY + 1) * 127.5, "which preprocess does not make"),
    "NaN": (READY * np.nan, "NaN or infinite"),
    "infinite": (READY + np.inf, "NaN or infinite"),
    "a number": (3, "of type int, not an image"),
    "nothing": (None, "of type NoneType"),
    "an empty list": ([], "There are no images"),
    "five axes": (PIXELS[None, None, None], "Image 0 is an array"),
    "two channels": (PIXELS[..., :2], "not an image"),
    "no pixels": (PIXELS[:0], "Image 0 is an array"),
    "bytes of no picture": (b"hello", "number 0"),
    "elsewhere": (Tensor(PIXELS, TypeError("can't convert cuda:0 device")), "Tensor cannot be read .*cuda"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_mean_anything_is_refused(model, name):
    images, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        model.logits(images)


def test_one_bad_picture_does_not_end_the_others(model, tmp_path, capsys, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    paths = [tmp_path / "good.png", tmp_path / "bad.png", PIXELS]
    first, second, third = model.predict(paths, 2)
    assert second == []
    assert (
        [name for name, _ in first] == [name for name, _ in third] == [name for name, _ in model.predict(PIXELS, 2)[0]]
    )
    assert "bad.png" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"bad\.png"):
        model.predict(tmp_path / "bad.png")

    model.save(tmp_path / "model")
    with pytest.raises(UserError, match="1 of 2 images cannot be read; the others are above"):
        predict.command([str(tmp_path / "good.png"), str(tmp_path / "bad.png"), "--workdir", str(tmp_path / "model")])
    assert "good.png" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3", None, np.float32(2)])
@pytest.mark.parametrize("name", ["top", "batch_size"])
def test_counts_are_whole_numbers(model, name, value):
    call = model.predict if name == "top" else model.logits
    with pytest.raises(UserError, match=f"{name} is .*; give a whole number from 1"):
        call(PIXELS, **{name: value})


def test_counts_may_be_numpy_s(model):
    assert len(model.predict(PIXELS, np.int64(3))[0]) == 3
    assert len(model.predict(PIXELS, 99)[0]) == 10


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([99], "has the label 99"),
        ([-2], "has the label -2"),
        ([-1], "No image has a label"),
        ([None], "neither whole numbers nor names"),
        ([1.0], "neither whole numbers nor names"),
        (np.eye(10)[:1], "neither whole numbers nor names"),
        ([1, 2], "1 images and 2 labels"),
        (3, "The labels are 3; give a list"),
    ],
)
def test_labels_that_fit_nothing_are_refused(model, labels, words):
    with pytest.raises(UserError, match=words):
        model.evaluate([PIXELS], labels)


LABELS = {"list": [3], "numpy": np.array([3], np.uint8), "jax": jnp.array([3]), "tuple": (3,), "iterator": iter([3])}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_read(model, kind):
    assert model.evaluate([PIXELS], LABELS[kind]).images == 1


def test_what_is_printed_is_short(model):
    assert len(repr(model)) < 100
    said = repr(model.evaluate([PIXELS] * 3, [0, 1, 2]))
    assert len(said) < 200
    assert "images=3" in said


def test_paths_that_are_none_are_one_sentence(model, tmp_path):
    cases = {
        "is a directory; name the file": lambda: model.export_onnx(tmp_path),
        "3 is not a path": lambda: model.export_onnx(3),
        "None is not a path": lambda: lraqvit_jax.load(None),
        "is neither an artefact nor a work directory": lambda: lraqvit_jax.load(tmp_path),
        "is there already": lambda: model.save(tmp_path),
        "is an address": lambda: model.save("s3://bucket/model"),
    }
    for words, call in cases.items():
        with pytest.raises(UserError, match=words):
            call()


def boxed(leaf):
    return nn.Partitioned(leaf, (None,) * leaf.ndim)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda params: {"params": params},
        freeze,
        lambda params: jax.tree.map(boxed, params),
        lambda params: freeze({"params": jax.tree.map(boxed, params)}),
        lambda params: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params),
        lambda params: jax.tree.map(jnp.asarray, params),
    ],
    ids=["collection", "frozen", "boxed", "all of it", "float64", "jax"],
)
def test_parameters_are_taken_as_plain_arrays(wrap):
    params = small.params(small.plan("dense"), np.random.default_rng(1))
    options = {"preprocess": PREPROCESS, "budget": 1, "bits": 0}
    want = lraqvit_jax.compress(small.model(), params, [PIXELS], **options).logits(PIXELS)
    got = lraqvit_jax.compress(small.model(), wrap(params), [PIXELS], **options).logits(PIXELS)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("budget", float("nan"), "budget is nan"),
        ("budget", "0.5", "budget is '0.5'"),
        ("bits", 8.0, r"bits is 8\.0"),
        ("bits", True, "bits is True"),
        ("steps", 1.5, r"steps is 1\.5; give a whole number from 0"),
        ("preprocess", None, "preprocess is None"),
        ("params", None, "params is None"),
        ("quantizer", None, "quantizer is None"),
        ("fields", ["seed"], r"fields is \['seed'\]; give a mapping"),
        ("mesh", "data", "mesh is 'data'"),
        ("workdir", 3, "3 is not a path"),
        ("metric", "features", "metric is 'features', and a model here is a classifier"),
        ("images", pathlib.Path(), 'write "folder:'),
    ],
)
def test_arguments_of_compress_are_checked_before_work(field, value, words):
    params = small.params(small.plan("dense"), np.random.default_rng(1))
    options = {"params": params, "images": [PIXELS], "preprocess": PREPROCESS, field: value}
    with pytest.raises(UserError, match=words):
        lraqvit_jax.compress(small.model(), **options)


def test_a_head_of_zeros_answers_zeros_in_integers_too():
    params = small.params(small.plan("dense"), np.random.default_rng(1))
    params = {**params, "head": jax.tree.map(np.zeros_like, params["head"])}
    made = lraqvit_jax.compress(small.model(), params, [PIXELS] * 4, preprocess=PREPROCESS, budget=0.6, bits=8)
    np.testing.assert_array_equal(made.logits(PIXELS), np.zeros((1, 10)))


def test_a_leaf_that_is_no_number_is_named():
    params = small.params(small.plan("dense"), np.random.default_rng(1))
    with pytest.raises(UserError, match="cls_token has values that are no numbers"):
        lraqvit_jax.compress(small.model(), {**params, "cls_token": "x"}, [PIXELS], preprocess=PREPROCESS)


class Held:
    """A tensor of another library."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __iter__(self):
        return iter([Held(value) for value in self.values])


def test_labels_of_every_kind_and_what_are_none(model):
    for labels in (
        [0, 1],
        np.array([0, 1], np.int8),
        jnp.array([0, 1]),
        Held([0, 1]),
        (label for label in (0, 1)),
    ):
        assert model.evaluate([PIXELS, PIXELS], labels).images == 2
    for labels in ([True, False], np.array([True, False]), {0: 1, 1: 0}, {0, 1}, np.array(3), 3, [[0], [1]]):
        with pytest.raises(UserError, match="labels are"):
            model.evaluate([PIXELS, PIXELS], labels)
    with pytest.raises(UserError, match="beside embedded:mnist5k, which has its own"):
        model.evaluate("embedded:mnist5k", [0, 1])


def test_files_are_refused_where_none_can_be(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, and"):
        model.save(tmp_path / "file" / "artefact")
    with pytest.raises(UserError, match=r"is a file; name a directory|is a file, and"):
        model.export_onnx(tmp_path / "file" / "model.onnx")
    with pytest.raises(UserError, match="is a directory; name the file"):
        model.export_onnx(tmp_path)
    with pytest.raises(UserError, match="There is no ONNX target 3"):
        model.export_onnx(tmp_path / "model.onnx", target=3)
    with pytest.raises(UserError, match="dtype is 'int7'"):
        lraqvit_jax.load(model.save(tmp_path / "artefact"), dtype="int7")
