"""The report, from a work directory made by hand."""

import collections
import html.parser
import json
import re

import jax
import numpy as np
import pytest

from configs import digits
from lraqvit_jax import plan as plan_lib
from lraqvit_jax import results, workspace
from lraqvit_jax.errors import UserError
from lraqvit_jax.report import page
from lraqvit_jax.stages import report
from tests.unit import small

HOSTILE = '<script>alert("1")</script> $\\frac$ & more'
VOID = {"meta", "link", "br", "hr", "img", "input"}
ROW = {"params": 27_562, "linear_gflops": 0.000258, "size_mb": 0.110248, "top5": 99.33, "n_images": 297, "seconds": 1.0}
ROWS = [
    {"name": "dense", **ROW, "top1": 77.78, "notes": "trained 40 steps"},
    {"name": "rb_lra_kd", **ROW, "params": 14_762, "top1": 76.77, "notes": HOSTILE},
    {"name": "int8_wads", **ROW, "params": 14_763, "size_mb": 0.0217, "top1": 78.11, "notes": "wads"},
]
ERRORS = {"blocks_0/attn/qkv:x": 0.004, "blocks_0/attn/qkv:z": 0.007, "head:x": 0.0}


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, the text by tag, and a proof that tags are nested and closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], collections.defaultdict(list), []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        for tag in self._open[-1:]:
            self.text[tag].append(data.strip())

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if attrs.get(name)]


def fields():
    return digits.get_config().to_dict()


def opened(folder):
    return workspace.open_workspace(fields(), folder)


def add_rows(ws, rows=ROWS):
    for row in rows:
        results.add(ws.directory, ws.model, row, [one["name"] for one in ROWS])


def add_dense(ws, rng):
    one = plan_lib.dense(ws.spec.layers)
    ws.save("dense", small.params(one, rng), one, parent="", notes="trained 40 steps")


def add_metrics(ws, runs=("rb_lra_kd",)):
    lines = [{"run": "teacher", "step": step, "loss": 2 / step, "accuracy": 0.5} for step in (5, 10)]
    blocks = {"ce": 0.2, "kd": 0.15, "kd_0": 0.1, "kd_1": 0.2}
    lines += [
        {"run": run, "step": step, "loss": 1 / step, "accuracy": 0.9, **blocks} for run in runs for step in (5, 9)
    ]
    (ws.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def add_int8(ws, rng, surface=None):
    one = plan_lib.dense(ws.spec.layers)
    ws.save("int8_wads", small.params(one, rng), one, parent="rb_lra_kd", errors=ERRORS)
    if surface is None:
        surface = np.abs(rng.standard_normal((5, 12))).astype(np.float32)
        surface[:, 3] *= 40
    (ws.directory / "report").mkdir()
    keys = {"blocks_0/attn/qkv:z:before": surface, "blocks_0/attn/qkv:z:after": surface / 2}
    np.savez_compressed(ws.directory / "report" / "activations-int8_wads.npz", **keys)


def rendered(ws):
    report.run(ws)
    return (ws.directory / "report.html").read_text()


def section(text, title):
    """The part of the page under a heading."""
    return re.search(rf"<h2[^>]*>{title}</h2>(.*?)</section>", text, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with every section, and its work directory."""
    ws, rng = opened(tmp_path_factory.mktemp("whole")), np.random.default_rng(0)
    add_rows(ws)
    add_dense(ws, rng)
    add_metrics(ws)
    add_int8(ws, rng)
    return ws, rendered(ws)


def test_every_row_and_number_is_in_the_table(whole):
    found = Page(whole[1])
    for row in ROWS:
        assert row["name"] in found.text["th"]
        cells = f"{row['params']:,}", f"{row['size_mb']:.3f}", f"{row['top1']:.2f}", f"{row['top1'] - 77.78:+.2f}"
        assert {*cells, f"{row['top5']:.2f}", str(row["n_images"]), row["notes"]} <= set(found.text["td"])
    assert {info.path for info in whole[0].spec.layers} <= set(found.text["th"])


def test_tables_and_figures_say_what_they_are(whole):
    found = Page(whole[1])
    names = collections.Counter(tag for tag, _ in found.tags)
    assert names["table"] == names["caption"] == 2
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in found.tags if tag == "th")
    assert names["figure"] == names["figcaption"] == names["svg"] == 6
    assert sum(attrs.get("role") == "img" and bool(attrs.get("aria-label")) for _, attrs in found.tags) == 6


def test_nothing_is_fetched_and_nothing_runs(whole):
    found = Page(whole[1])
    links = [value for name in ("src", "href", "xlink:href", "data", "srcset") for value in found.attributes(name)]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert not re.search(r"@import|url\((?!#)", whole[1])


def test_notes_are_escaped(whole):
    assert "<script" not in whole[1]
    assert "&lt;script&gt;" in whole[1]


def test_the_page_is_the_same_for_the_same_artefacts(whole):
    ws, text = whole
    assert rendered(ws) == text
    assert str(ws.directory) not in text


def test_provenance(whole):
    text = section(whole[1], "Provenance")
    assert "embedded:digits" in text
    assert "64 images for low rank, 32 for int8, from the training data, drawn with seed 0" in text
    assert f"jax {jax.__version__}" in text


def test_one_row_is_enough_and_the_rest_says_what_makes_it(tmp_path):
    ws = opened(tmp_path)
    add_rows(ws, ROWS[:1])
    text = rendered(ws)
    Page(text)
    assert "<svg" not in text
    assert "teacher and distill" in section(text, "Training")
    assert "stage quantize" in section(text, "Activations and quantization")


def test_rows_without_the_dense_one(tmp_path):
    ws = opened(tmp_path)
    add_rows(ws, ROWS[1:])
    assert "76.77" in Page(rendered(ws)).text["td"]


def test_no_row_is_the_users_mistake(tmp_path):
    ws = opened(tmp_path)
    with pytest.raises(UserError, match="--stages=teacher first"):
        report.run(ws)
    assert not (tmp_path / "report.html").exists()


def test_without_a_dense_model_the_spectra_say_so(tmp_path):
    ws = opened(tmp_path)
    add_rows(ws, ROWS[:1])
    assert "stage teacher" in section(rendered(ws), "Singular values")


def test_ids_are_unique_with_two_distilled_runs(whole, tmp_path):
    rows = [{"run": run, "step": 1, "loss": 1.0, "accuracy": 0.5, "kd": 0.1, "kd_0": 0.1} for run in ("a", "b")]
    for text in (whole[1], "".join(figure.svg for figure in page.training(rows).figures)):
        found = Page(text)
        ids = collections.Counter(found.attributes("id"))
        assert max(ids.values()) == 1
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


@pytest.mark.parametrize("name", [HOSTILE, "_hidden", "$x$"])
def test_run_names_are_drawn_as_they_are(name):
    rows = [{"run": name, "step": 1, "loss": 1.0, "accuracy": 0.5}]
    assert name in Page(page.training(rows).figures[0].svg).text["text"]


@pytest.mark.parametrize("loud", [0.0, 5.0])
def test_silent_channels_and_kernels(loud):
    """A channel that is always zero, and a kernel of zeros, are drawn like any other."""
    surface = np.zeros((3, 4))
    surface[0, 0] = loud
    made = page.activations({"a:x:before": surface, "a:x:after": surface}, {"q": {"a:x": 0.0}}, "q")
    assert len(made.figures) == 3
    assert page.spectra({"a/qkv": np.zeros(4)}, {"a/qkv": 2}).figures


def test_int8_models_may_differ_in_their_products():
    made = page.activations({}, {"a": {"one:x": 0.1}, "b": {"two:x": 0.1, "one:x": 0.2}}, "")
    words = Page(made.figures[0].svg).text["text"]
    assert {"one:x", "two:x", "a", "b"} <= set(words)


def test_tick_labels_are_numbers(whole):
    """No mathematical markup shows on an axis."""
    assert not [word for word in Page(whole[1]).text["text"] if "$" in word or "mathdefault" in word]
