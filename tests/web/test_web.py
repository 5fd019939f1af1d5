"""examples/web in headless Chromium: what it prepares, computes and shows, against Pillow and ONNX Runtime."""

import functools
import http.server
import io
import json
import os
import pathlib
import shutil
import threading

import numpy as np
import onnx
import onnxruntime
import pytest
import sklearn.datasets
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lraqvit_jax.data import preprocess
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.export import onnx as export
from tests.unit.export.test_onnx import artifact

playwright = pytest.importorskip("playwright.sync_api", reason="needs requirements-web.txt")
FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
PHOTOS = pathlib.Path(sklearn.datasets.__file__).parent / "images"
GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
"""Chromium's own GPU in software, where there is no other."""
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium on the PATH or in CHROMIUM"),
    pytest.mark.skipif(not (FOLDER / "node_modules").exists(), reason="needs npm install in examples/web"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser():
    """A browser, and where it finds the page."""
    handler = functools.partial(Quiet, directory=FOLDER)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started = driver.chromium.launch(executable_path=CHROMIUM, args=GPU)
        yield started, f"http://127.0.0.1:{server.server_port}/index.html"
        started.close()
        server.shutdown()


@pytest.fixture
def page(browser):
    started, url = browser
    with started.new_context(viewport={"width": 360, "height": 740}) as context:
        page = context.new_page()
        page.address, errors = url, []

        def note(error):
            errors.append(error)

        page.on("pageerror", note)
        yield page
        assert not errors


def open_with(page, model=b"", query=""):
    """Opens the page with a model beside it, or without one."""
    answer = {"body": model} if model else {"status": 404}
    page.route("**/model.onnx", lambda route: route.fulfill(**answer))
    page.goto(page.address + query)
    page.evaluate("() => work")


def show(page, data, name="photo.jpg"):
    page.set_input_files("#photo", {"name": name, "mimeType": "image/jpeg", "buffer": data})
    page.evaluate("() => work")


def encoded(image, kind="jpeg", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def small_photos():
    """JPEGs of several shapes, the quality and colours of a phone's."""
    for name, box in [
        ("china.jpg", (0, 0, 640, 427)),
        ("flower.jpg", (100, 20, 420, 427)),
        ("china.jpg", (9, 9, 89, 70)),
    ]:
        yield encoded(Image.open(PHOTOS / name).crop(box), quality=90)


def answers(page, one, path):
    """Shows each of the photos to a page with that model: its logits, and those of ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for data in small_photos():
        show(page, data)
        got = page.evaluate("async () => Array.from(await run(model, prepare(photo, model.preprocess)))")
        want = session.run(None, {"images": one.preprocess(Image.open(io.BytesIO(data)))[None]})[0][0]
        yield np.float32(got), want


@pytest.mark.parametrize("interpolation", sorted(preprocess.INTERPOLATIONS))
@pytest.mark.parametrize(("size", "crop_pct"), [(64, 1.0), (57, 0.875), (224, 0.9)])
def test_a_photo_is_prepared_to_the_last_bit(page, size, crop_pct, interpolation):
    record = Preprocess(size, crop_pct, interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    open_with(page)
    for data in small_photos():
        show(page, data)
        got = page.evaluate("preprocess => Array.from(prepare(photo, preprocess))", record.to_json())
        want = record(Image.open(io.BytesIO(data)))
        assert np.array_equal(np.float32(got).reshape(want.shape), want)


def test_a_photo_is_turned_as_its_camera_was(page):
    image, exif, record = Image.open(PHOTOS / "china.jpg"), Image.Exif(), Preprocess(32)
    exif[274] = 6
    open_with(page)
    show(page, encoded(image, "png", exif=exif))
    got = page.evaluate("preprocess => Array.from(prepare(photo, preprocess))", record.to_json())
    want = record(image.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(np.float32(got).reshape(want.shape), want)


@pytest.mark.parametrize(
    ("model", "rank", "fields", "bound"),
    [
        ("swin_pico", 0, None, 1e-5),
        ("vit_pico", 8, None, 1e-5),
        ("vit_pico", 8, {"granularity": "per_token_dynamic"}, 1e-5),
        ("vit_pico", 8, {"granularity": "per_token", "asymmetric": True}, 1e-5),
        ("swin_pico", 8, {"granularity": "per_tensor"}, 1e-5),
        ("vit_pico", 8, {"granularity": "per_token_dynamic", "weight_bits": 4}, 1e-5),
        ("vit_pico", 8, {"granularity": "per_token_dynamic", "weight_bits": 4, "group": 16}, 0.02),  # Rounds rows anew.
    ],
)
def test_answers_are_those_of_python(rng, tmp_path, page, model, rank, fields, bound):
    """Logits over the largest one; in the median of the photos, since a value on the edge between two integers may
    become either."""
    one, _ = artifact(rng, model, 8, rank, fields)
    one.meta["class_names"] = names = [f"a kind of bird, the {index}th" for index in range(10)]
    export.export(one, tmp_path / "one.onnx")
    open_with(page, (tmp_path / "one.onnx").read_bytes())
    errors = []
    for got, want in answers(page, one, tmp_path / "one.onnx"):
        errors.append(np.abs(got - want).max() / np.abs(want).max())
        shares = np.exp(got - got.max()) / np.exp(got - got.max()).sum()
        shown = [f"{names[index]}|{100 * shares[index]:.1f} %" for index in np.argsort(-got)[:5]]
        assert [line.replace("\n", "|") for line in page.locator("#answers li").all_inner_texts()] == shown
    assert np.median(errors) < bound, errors
    assert max(errors) < 0.2


@pytest.mark.parametrize("fields", [None, {"granularity": "per_token_dynamic"}, {"granularity": "per_tensor"}])
def test_a_gpu_computes_the_same(rng, tmp_path, page, fields):
    one, _ = artifact(rng, "vit_pico", 8, 8, fields)
    export.export(one, tmp_path / "one.onnx")
    open_with(page, (tmp_path / "one.onnx").read_bytes(), "?device=webgpu")
    if not page.evaluate("async () => !!await navigator.gpu?.requestAdapter()"):
        assert "this browser has no WebGPU" in page.locator("#status").inner_text()
        pytest.skip("this Chromium has no WebGPU")
    pairs = answers(page, one, tmp_path / "one.onnx")
    errors = [np.abs(got - want).max() / np.abs(want).max() for got, want in pairs]
    assert page.evaluate("device") == "webgpu"
    assert np.median(errors) < 2e-5, errors
    assert max(errors) < 0.2


def test_a_device_that_there_is_not_is_refused(rng, tmp_path, page):
    one, _ = artifact(rng, "vit_pico", 8)
    export.export(one, tmp_path / "one.onnx")
    open_with(page, (tmp_path / "one.onnx").read_bytes(), "?device=npu")
    assert "there is no device npu; take wasm or webgpu" in page.locator("#status").inner_text()


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_its_integer_sums_are_exact_in_8_bits(rng, page, kind):
    """As those of AVX2 are not, where kernels are int8 (see `export.onnx`)."""
    info = np.iinfo(kind)
    kernel = rng.integers(info.min, info.max + 1, (64, 32)).astype(kind)
    kernel[:, :8], kernel[:, 8:16] = info.min, info.max
    rows = rng.integers(0, 256, (48, 64)).astype(np.uint8)
    rows[:8], rows[8:16] = 0, 255
    node = helper.make_node("MatMulInteger", ["rows", "kernel", "zero"], ["sums"])
    inputs = [helper.make_tensor_value_info("rows", TensorProto.UINT8, rows.shape)]
    outputs = [helper.make_tensor_value_info("sums", TensorProto.INT32, [48, 32])]
    constants = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.uint8(128), "zero")]
    graph = helper.make_graph([node], "sums", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", export.OPSET)], ir_version=11)
    open_with(page)
    code = """async ([model, rows]) => {
        const session = await ort.InferenceSession.create(Uint8Array.from(model));
        return Array.from((await session.run({rows: new ort.Tensor("uint8", rows, [48, 64])})).sums.data);
    }"""
    got = page.evaluate(code, [list(made.SerializeToString()), rows.ravel().tolist()])
    assert np.array_equal(np.reshape(got, (48, 32)), (rows.astype(int) - 128) @ kernel.astype(int))


def test_mistakes_are_said_and_leave_the_page_usable(rng, tmp_path, page):
    one, _ = artifact(rng, "vit_pico", 8)
    made = export.export(one, tmp_path / "one.onnx")
    del made.metadata_props[:]
    onnx.save(made, tmp_path / "other.onnx")
    status = page.locator("#status")
    open_with(page)
    assert "model.onnx cannot be used: the server says 404" in status.inner_text()
    for name, data, said in [
        ("other.onnx", (tmp_path / "other.onnx").read_bytes(), "it does not say how to prepare an image"),
        ("short.onnx", (tmp_path / "one.onnx").read_bytes()[:500], "it is not an ONNX file"),
        ("photo.onnx", (PHOTOS / "china.jpg").read_bytes(), "cannot be used"),
    ]:
        page.set_input_files("#model", {"name": name, "mimeType": "", "buffer": data})
        page.evaluate("() => work")
        assert f"{name} cannot be used" in status.inner_text()
        assert said in status.inner_text()
    show(page, b"not a photo", "text.jpg")
    assert "text.jpg cannot be read as an image" in status.inner_text()
    page.set_input_files("#model", tmp_path / "one.onnx")
    show(page, (PHOTOS / "china.jpg").read_bytes())
    assert "ms for the answer" in status.inner_text()
    assert page.locator("#answers li").count() == 5


def test_a_photo_and_a_model_can_be_dropped_and_chosen_by_keyboard(rng, tmp_path, page):
    one, _ = artifact(rng, "vit_pico", 8)
    export.export(one, tmp_path / "one.onnx")
    open_with(page)
    for path in (tmp_path / "one.onnx", PHOTOS / "flower.jpg"):
        code = """([name, data]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([Uint8Array.from(data)], name));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
        }"""
        page.evaluate(code, [path.name, list(path.read_bytes())])
        page.evaluate("() => work")
    assert page.locator("#answers li").count() == 5
    for wanted in ("photo", "model"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == wanted
        with page.expect_file_chooser():
            page.keyboard.press("Space")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert json.loads(page.evaluate("JSON.stringify(model.preprocess)")) == one.preprocess.to_json()
