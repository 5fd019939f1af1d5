"""A work directory made by hand, and what the report makes of it."""

import collections
import html.parser
import json
import re

import numpy as np

from configs import digits
from lraqvit_jax import config
from lraqvit_jax.plan.records import dense
from lraqvit_jax.report import read
from lraqvit_jax.run import opening, results
from lraqvit_jax.stages import report
from tests.unit import small

HOSTILE = '<script>alert("1")</script> $\\frac$ & more'
VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
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


def fields(**changes):
    return digits.get_config().to_dict() | changes


def opened(folder, **changes):
    return opening.open_workspace(config.parse(fields(**changes)), folder)


def add_rows(ws, rows=ROWS):
    for row in rows:
        results.add(ws.directory, ws.model, row, [one["name"] for one in ROWS])


def add_dense(ws, rng):
    one = dense(ws.spec.layers)
    ws.save("dense", small.params(one, rng), one, parent="", notes="trained 40 steps")


def add_metrics(ws, runs=("rb_lra_kd",)):
    lines = [{"run": "teacher", "step": step, "loss": 2 / step, "accuracy": 0.5} for step in (5, 10)]
    blocks = {"ce": 0.2, "kd": 0.15, "kd_0": 0.1, "kd_1": 0.2}
    lines += [
        {"run": run, "step": step, "loss": 1 / step, "accuracy": 0.9, **blocks} for run in runs for step in (5, 9)
    ]
    (ws.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def add_int8(ws, rng, surface=None):
    one = dense(ws.spec.layers)
    ws.save("int8_wads", small.params(one, rng), one, parent="rb_lra_kd", errors=ERRORS)
    if surface is None:
        surface = np.abs(rng.standard_normal((5, 12))).astype(np.float32)
        surface[:, 3] *= 40
    (ws.directory / "report").mkdir(exist_ok=True)
    keys = {"blocks_0/attn/qkv:z:before": surface, "blocks_0/attn/qkv:z:after": surface / 2}
    np.savez_compressed(ws.directory / "report" / "activations-int8_wads.npz", **keys)


def add_answers(ws, wrong):
    """Answers of every model to the evaluation data, right but for the images of `wrong`, by model."""
    labels = np.array([ws.source("eval")[index]["label"] for index in range(ROW["n_images"])], np.int32)
    (ws.directory / "report").mkdir(exist_ok=True)
    for name, images in wrong.items():
        answer = labels.copy()
        answer[images] = (answer[images] + 1) % 10
        arrays = {"image": np.arange(len(labels), dtype=np.int32), "label": labels, "answer": answer}
        probability = np.linspace(0.5, 1, len(labels), dtype=np.float32)
        np.savez_compressed(ws.directory / "report" / f"answers-{name}.npz", **arrays, probability=probability)


def add_latency(ws):
    rows = [
        {"runtime": "onnxruntime", "model": name, "threads": 1, "batch": 1, "wall": {"ms": {"median": ms}}}
        for name, ms in (("dense", 30.5), ("int8_wads", 12.2))
    ]
    content = {"rows": rows, "machine": {"processor": "a processor"}}
    (ws.directory / read.LATENCY).write_text(json.dumps(content))


def add_low_rank(ws):
    """Rows of bench lowrank: of one way two seeds, of another one; and the dense model."""
    fields = ("name", "method", "budget", "seed", "params", "top1")
    rows = [
        ("dense", "", 1.0, 0, 27_562, 77.78),
        ("svd", "logits", 0.5, 0, 14_700, 60.0),
        ("svd", "logits", 0.5, 1, 14_900, 64.0),
        ("svd", "logits", 0.9, 0, 24_000, 70.0),
        ("weighted_kfac", "products", 0.5, 0, 14_000, 72.5),
    ]
    content = {"schema": 1, "rows": [dict(zip(fields, row, strict=True)) for row in rows]}
    (ws.directory / read.LOW_RANK).write_text(json.dumps(content))


def rendered(ws):
    report.run(ws)
    return (ws.directory / "report.html").read_text()


def section(text, title):
    """The part of the page under a heading."""
    return re.search(rf"<h2[^>]*>{title}</h2>(.*?)</section>", text, re.DOTALL).group(1)
