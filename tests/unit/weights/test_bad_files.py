"""Weight files and JSON that are damaged or hostile: one sentence, no allocation by what a header claims."""

import io
import json
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.lib import format as npy

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import augment, preprocess, sources
from lraqvit_jax.plan.cost import latency
from lraqvit_jax.plan.files import read_plan
from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.run import claim, metrics, results
from lraqvit_jax.weights import artifacts, cards, processors, tensors
from lraqvit_jax.weights.sources import big_vision, huggingface, timm


def safe(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def header_of(shape, descr="<f4", version=1):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text


def npz(*members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def pickled():
    file = io.BytesIO()
    npy.write_array(file, np.array([{"a": 1}, None], object))
    return file.getvalue()


HOSTILE = {
    "empty.safetensors": b"",
    "long header.safetensors": safe({}, length=10**18),
    "short header.safetensors": safe({"a": one()}, bytes(4), length=3),
    "truncated.safetensors": safe({"a": one()}, bytes(3)),
    "overlap.safetensors": safe({"a": one(), "b": one()}, bytes(4)),
    "gap.safetensors": safe({"a": one(), "b": one(offsets=(8, 12))}, bytes(12)),
    "overflow.safetensors": safe({"a": one(shape=(2**33, 2**33))}, bytes(4)),
    "zero.safetensors": safe({"a": one(shape=(2**62, 0), offsets=(0, 0))}),
    "empty tensor.safetensors": safe({"a": one(shape=(0, 5), offsets=(0, 0))}),
    "negative.safetensors": safe({"a": one(shape=(-1,))}, bytes(4)),
    "f8.safetensors": safe({"a": one("F8_E4M3", (4,))}, bytes(4)),
    "complex.safetensors": safe({"a": one("C64", offsets=(0, 8))}, bytes(8)),
    "invented.safetensors": safe({"a": one("F99")}, bytes(4)),
    "deep.safetensors": safe(b"[" * 100_000),
    "no zip.npz": b"PK\x03\x04 and no more",
    "no array.npz": npz(("a.npy", b"text")),
    "petabytes.npz": npz(("a.npy", header_of((10**15,)) + bytes(64))),
    "overflow.npz": npz(("a.npy", header_of((2**40, 2**40)) + bytes(64))),
    "negative.npz": npz(("a.npy", header_of((-1,)) + bytes(64))),
    "too short.npz": npz(("a.npy", header_of((17,)) + bytes(64))),
    "empty.npz": npz(("a.npy", header_of((0, 2**62)))),
    "objects.npz": npz(("a.npy", pickled())),
    "strings.npz": npz(("a.npy", header_of((2,), "<U8") + bytes(64))),
    "structured.npz": npz(("a.npy", header_of((8,), [("x", "<f4"), ("y", "<f4")]) + bytes(64))),
    "dates.npz": npz(("a.npy", header_of((8,), "<M8[s]") + bytes(64))),
    "version.npz": npz(("a.npy", header_of((16,), version=7) + bytes(64))),
    "code.npz": npz(("a.npy", header_of("__import__('os').getpid()") + bytes(64))),
    "bomb.npz": npz(("a.npy", header_of((40 * 2**20,)) + bytes(160 * 2**20)), compression=zipfile.ZIP_DEFLATED),
    "lzma.npz": npz(("a.npy", header_of((16,)) + bytes(64)), compression=zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weight_files_are_refused_in_little_memory(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(UserError, match="cannot be read") as error:
        tensors.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_arrays_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(*[("a.npy", header_of((1,)) + bytes(4))] * 2))
    with pytest.raises(UserError, match="one name"):
        tensors.read(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, safetensors.numpy.save_file])
def test_whole_files_are_read_as_they_are(tmp_path, rng, save):
    wanted = {
        "a/b": rng.normal(size=(3, 4)).astype(np.float32),
        "half": rng.normal(size=5).astype(np.float16),
        "scalar": np.array(3.5),
        "steps": np.arange(6),
        "brain": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
    }
    if save is safetensors.numpy.save_file:
        path = tmp_path / "a.safetensors"
        save(wanted, path)
    else:
        path = tmp_path / "a.npz"
        save(path, **wanted, turned=np.asfortranarray(wanted["a/b"]))
    found = tensors.read(path)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name], value)


def test_weights_that_are_not_finite_are_named():
    tensors.check_finite({"a": {"kernel": np.ones(3, np.float32)}}, "timm:x")
    with pytest.raises(UserError, match="timm:x has values in a/kernel that are NaN"):
        tensors.check_finite({"a": {"kernel": np.array([1, np.nan], np.float32)}}, "timm:x")


GARBAGE = [b"", b"{", b"\xff\xfe", b"[]", b"null", b"1e999", b"[" * 100_000, b'{"a": ' * 50_000, b"9" * 5000]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_json_object_is_refused_everywhere(tmp_path, content):
    for name in ("plan.json", "config.json", "results.json", "meta/metadata", "preprocessor_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "metrics.jsonl").write_bytes(content)
    for read in (
        lambda: read_plan(tmp_path / "plan.json"),
        lambda: claim.claimed(tmp_path),
        lambda: claim.edited(tmp_path),
        lambda: results.read(tmp_path),
        lambda: artifacts.read_meta(tmp_path),
        lambda: timm.read_card(tmp_path / "config.json", "model"),
        lambda: huggingface._json(tmp_path / "preprocessor_config.json"),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert len(str(error.value)) < 600
    assert metrics.read(tmp_path / "metrics.jsonl") == []


def test_a_json_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "plan.json").open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)  # sparse
    with pytest.raises(UserError, match="more than"):
        read_plan(tmp_path / "plan.json")


def test_rows_that_are_none_are_left_out_of_the_metrics_and_refused_in_the_results(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"run": "a", "step": 1}\n7\n{"run": "a"}\n{"run": ["a"], "step": 1}\n{"ru')
    assert metrics.read(tmp_path / "metrics.jsonl") == [{"run": "a", "step": 1}]
    for rows in (None, {"a": 1}, [7], [{"name": "dense"}], [{"name": ["dense"]}]):
        (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
        with pytest.raises(UserError, match=r"results\.json"):
            results.read(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "8"},
        {"size": 10**9},
        {"size": 8.0},
        {"crop_pct": 1e-9},
        {"crop_pct": float("nan")},
        {"crop_pct": None},
        {"mean": 5},
        {"mean": [0.5, 0.5, "a"]},
        {"std": [0.5, 0.5, float("inf")]},
        {"std": [10**400] * 3},
        {"interpolation": ["bicubic"]},
        {"sharpness": 1},
    ],
)
def test_a_preprocess_of_other_kinds_is_refused(fields):
    with pytest.raises(UserError, match="preprocess"):
        preprocess.from_json({"size": 8, **fields})


@pytest.mark.parametrize(
    "text",
    [
        "random_crop(" + "[" * 900 + ")",
        "random_crop(" + "-" * 1500 + "1)",
        "rand_augment(1000000000)",
        "flip_lr(0.5)|" * 500,
        "random_affine(1e999)",
        "\0",
        "flip_lr(\0)",
    ],
)
def test_an_augmentation_that_would_take_for_ever_is_refused(text):
    with pytest.raises(UserError, match="augment"):
        augment.parse(text)


def test_a_refusal_is_one_line_whatever_the_name():
    with pytest.raises(UserError) as error:
        timm.read("/no/such\nplace\r.npz")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError) as error:
        sources.load("x" * 100_000, "train")
    assert len(str(error.value)) < 5000
    assert str(error.value).endswith("tfds.")


def test_a_latency_beyond_64_bits_is_a_number():
    row = {"features_in": 4, "features_out": 4, "tokens": 1, "ms": {"0": 1.0, "8": 10**30, "16": 1.0}}
    cost = latency({"layers": [row]})
    assert cost(LinearInfo("a", 4, 4, 1, "mlp"), 12) == pytest.approx(5e29)


def test_a_count_of_too_many_digits_is_refused():
    with pytest.raises(UserError, match="write"):
        sources.load(f"embedded:digits?images={'9' * 5000}", "train")


@pytest.mark.parametrize(
    "row", [{}, 7, {"tokens": []}, {"ms": {"0": "a", "8": 1.0}}, {"ms": {"8": 1.0}}, {"ms": {"0": 1.0}}, {"ms": [1.0]}]
)
def test_a_latency_table_without_numbers_is_refused(row):
    whole = {"features_in": 4, "features_out": 4, "tokens": 1, "ms": {"0": 1.0, "8": 2.0}}
    assert latency({"layers": [whole]})
    with pytest.raises(UserError, match="not a table of bench layers"):
        latency({"layers": [whole | row if row and isinstance(row, dict) else row]})


@pytest.mark.parametrize(
    "fields", [{"model_type": []}, {"hidden_act": {}}, {"layer_norm_eps": "a"}, {"layer_norm_eps": True}]
)
def test_a_transformers_config_of_other_kinds_is_refused(fields):
    with pytest.raises(UserError, match="x "):
        huggingface._hints({"model_type": "vit", **fields}, "x")


def test_sizes_and_names_of_other_kinds_in_a_transformers_config():
    for size in ("224", [1.5], {"height": None}, 10**9, -1):
        with pytest.raises(UserError, match="size"):
            processors.preparation({"size": size}, "vit")
    for labels in (["cat", "dog"], {"a": "cat", "b": "dog"}, {"0": "cat"}, None, 7):
        assert cards.class_names(labels, 2) == []
    assert cards.class_names({"1": "dog", "0": "cat"}, 2) == ["cat", "dog"]


def test_queries_keys_and_values_that_do_not_fit_are_named(tmp_path):
    stem = "encoder.layer.0.attention.attention"
    values = {
        f"vit.{stem}.{part}.weight": np.ones((2, side)) for part, side in (("query", 2), ("key", 3), ("value", 2))
    }
    with pytest.raises(UserError, match="do not fit together"):
        huggingface.rename(values)
    np.savez(tmp_path / "a.npz", cls=np.ones((1, 1, 8)), **{"embedding/kernel": np.ones(3)})
    with pytest.raises(UserError, match="tensors that no ViT has"):
        big_vision.read(str(tmp_path / "a.npz"))
