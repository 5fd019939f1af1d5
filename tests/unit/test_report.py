"""The report, from a work directory made by hand."""

import base64
import collections
import html.parser
import io
import itertools
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from lraqvit_jax import arguments, results, workspace
from lraqvit_jax import plan as plan_lib
from lraqvit_jax.errors import UserError
from lraqvit_jax.report import __main__ as command
from lraqvit_jax.report import examples, page, panels, read, sections, table, theme, words
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
    return workspace.open_workspace(fields(**changes), folder)


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
    add_answers(ws, {"dense": [0, 1, 2], "int8_wads": [2, 3, 4, 5], "rb_lra_kd": [0, 1, 2]})
    add_latency(ws)
    return ws, rendered(ws)


def test_every_row_and_number_is_in_the_table(whole):
    text = whole[1].replace("<wbr>", "")
    found = Page(section(text, "Results"))
    names = {word for words in found.text.values() for word in words}
    for row in ROWS:
        assert row["name"] in names
        cells = {
            f"{row['params']:,}",
            f"{row['size_mb']:.3f}",
            f"{row['top1']:.2f}",
            f"{row['top5']:.2f}",
            row["notes"],
        }
        assert cells <= set(found.text["td"])
    assert words.signed(76.77 - 77.78) in found.text["td"]
    assert {info.path for info in whole[0].spec.layers} <= set(Page(text).text["th"])


def test_tables_and_figures_say_what_they_are(whole):
    found = Page(whole[1])
    names = collections.Counter(tag for tag, _ in found.tags)
    assert names["table"] == names["caption"] > 5
    assert all(attrs.get("scope") in ("row", "col", "rowgroup") for tag, attrs in found.tags if tag == "th")
    pictures = [attrs for tag, attrs in found.tags if tag == "svg" and attrs.get("role") == "img"]
    assert names["figure"] == names["figcaption"] == len(pictures) > 10
    ids = found.attributes("id")
    assert all(set(attrs["aria-labelledby"].split()) <= set(ids) for attrs in pictures)
    assert all(found.text["desc"]) and len(found.text["desc"]) == len(pictures)
    others = [attrs for tag, attrs in found.tags if tag == "svg" and attrs.get("role") != "img"]
    assert all(attrs.get("aria-hidden") == "true" for attrs in others)
    assert all(attrs.get("alt") for tag, attrs in found.tags if tag == "img")


def test_the_page_can_be_walked_by_keyboard_and_by_headings(whole):
    found = Page(whole[1])
    tags = [tag for tag, _ in found.tags]
    assert tags.count("h1") == tags.count("main") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    boxes = [attrs for _, attrs in found.tags if "scroll" in attrs.get("class", "").split()]
    assert all((box["tabindex"], box["role"]) == ("0", "region") and box["aria-label"] for box in boxes)
    assert len({box["aria-label"] for box in boxes}) == len(boxes)
    targets = [link.removeprefix("#") for link in found.attributes("href")]
    assert targets[0] == "main" and set(targets) <= set(found.attributes("id"))
    named = [attrs["aria-labelledby"] for tag, attrs in found.tags if tag == "section"]
    assert set(named) <= set(targets)


def test_nothing_is_fetched_and_nothing_runs(whole):
    found = Page(whole[1])
    links = [value for name in ("src", "href", "xlink:href", "data", "srcset") for value in found.attributes(name)]
    allowed = ("#", "data:image/png;base64,", "data:image/jpeg;base64,")
    assert links and all(link.startswith(allowed) for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert not re.search(r"@import|url\((?!#)", whole[1])
    policy = next(attrs["content"] for tag, attrs in found.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_notes_are_escaped(whole):
    assert "<script" not in whole[1]
    assert "&lt;script&gt;" in whole[1]


def test_the_page_is_the_same_for_the_same_artefacts_and_from_files_alone(whole, tmp_path):
    ws, text = whole
    assert rendered(ws) == text
    assert str(ws.directory) not in text
    copy = shutil.copytree(ws.directory, tmp_path / ws.directory.name)
    shutil.rmtree(copy / "checkpoints" / "dense" / "params")
    (copy / "report.html").unlink()
    assert command.make([str(copy)]).read_text() == text


def test_provenance(whole):
    text = section(whole[1], "Provenance")
    assert "embedded:digits" in text
    assert "64 images for low rank, 32 for int8, from the training data, drawn with seed 0" in text
    assert f"jax {jax.__version__}" in text
    (shown,) = Page(text).text["pre"]
    assert json.loads(shown) == whole[0].config


def test_one_row_is_enough_and_the_rest_says_what_makes_it(tmp_path):
    ws = opened(tmp_path)
    add_rows(ws, ROWS[:1])
    text = rendered(ws)
    Page(text)
    assert 'role="img"' not in text
    assert "teacher and distill" in section(text, "Training")
    assert "stage quantize" in section(text, "Activations and quantization")
    assert "nothing to compare yet" in text


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


def test_ids_are_unique_with_two_distilled_runs(whole):
    rows = [{"run": run, "step": 1, "loss": 1.0, "accuracy": 0.5, "kd": 0.1, "kd_0": 0.1} for run in ("a", "b")]
    grids = sections.training(rows).grids
    for text in (whole[1], "".join(figure.svg for grid in grids for figure in grid.figures)):
        found = Page(text)
        ids = collections.Counter(found.attributes("id"))
        assert max(ids.values()) == 1
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


@pytest.mark.parametrize("loud", [0.0, 5.0])
def test_silent_channels_and_kernels(loud):
    """A channel that is always zero, and a kernel of zeros, are drawn like any other."""
    values = np.zeros((3, 4))
    values[0, 0] = loud
    made = sections.activations({"a:x:before": values, "a:x:after": values}, {"q": {"blocks_0/a:x": 0.0}}, "q")
    assert [len(grid.figures) for grid in made.grids] == [2, 0, 1]
    assert sections.spectra({"a/qkv": np.zeros(4)}, {"a/qkv": 2}).grids


def test_int8_models_may_differ_in_their_products():
    (grid,) = sections.activations({}, {"a": {"one:x": 0.1}, "b": {"two:x": 0.1, "one:x": 0.2}}, "").grids
    assert grid.columns[1:] == ("a", "b")
    assert [tuple(row) for row in grid.rows] == [("one", "10.00", "20.00"), ("two", "", "10.00")]


def test_tick_labels_are_numbers(whole):
    """No mathematical markup shows on an axis."""
    assert not [word for word in Page(whole[1]).text["text"] if "$" in word or "mathdefault" in word]


def test_colours_of_figures_are_those_of_the_page(whole):
    """What is drawn in a colour of its own would not follow into the dark."""
    pictures = re.findall(r'<svg[^>]*role="img".*?</svg>', whole[1], re.DOTALL)
    styles = [style for picture in pictures for style in re.findall(r'style="([^"]*)"', picture)]
    assert not [style for style in styles if re.search("#[0-9a-f]{6}", style)]
    assert any("var(--c0)" in style for style in styles) and any("var(--r0)" in style for style in styles)


def luminance(color):
    """WCAG 2's relative luminance of #rrggbb."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return np.dot(
        [0.2126, 0.7152, 0.0722], [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    )


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_and_lines_can_be_told_from_their_ground(whole, mode):
    """WCAG AA: 4.5 for text, 3 for lines."""
    blocks = re.findall(r":root {(.*?)}", whole[1], re.DOTALL)
    colors = dict(re.findall(r"(--\w+): (#[0-9a-f]{6});", blocks[mode]))
    for ground in ("--card", "--paper", "--mark"):
        for ink in ("--ink", "--dim", "--accent", "--good", "--bad"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    lines = [name for name in colors if re.fullmatch(r"--[cr]\d", name)]
    assert len(lines) == len(theme.VARIABLES) - 1
    assert all(contrast(colors[name], colors["--card"]) >= 3 for name in lines)


def some(**rows):
    """A run of models, (MB, top-1) by name."""
    listed = [{"name": name, "size_mb": size, "top1": top1} for name, (size, top1) in rows.items()]
    config = {"runs": {"kd": {}}, "quant": {"methods": {"int8": {}, "int4": {}}}}
    return read.Run("run", "vit", listed, config, {}, (), {}, (), {}, {}, {}, {}, {})


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ({"dense": (4, 90), "kd": (2, 89.5), "int8": (0.5, 89.2), "int4": (0.3, 88)}, "int8"),
        ({"dense": (4, 90), "kd": (2, 89.5), "int8": (0.5, 89.2), "int4": (0.495, 89.1)}, "int8"),
        ({"dense": (4, 90), "kd": (2, 80), "int8": (0.5, 78.5)}, "kd"),
        ({"dense": (4, 90), "kd": (2, 80), "int8": (0.5, 79.5)}, "int8"),
        ({"dense": (4, 90), "kd": (2, 89.0)}, "kd"),
        ({"dense": (4, 90)}, None),
        ({"kd": (4, 90)}, None),
    ],
    ids=["smallest", "nearly as small", "all lose", "all lose, near the best", "just one point", "alone", "no dense"],
)
def test_the_pick(rows, wanted):
    found = table.pick(some(**rows))
    assert (found and found["name"]) == wanted


def test_the_order_is_by_group_then_accuracy():
    run = some(int8=(0.5, 97), kd=(2, 80), lra=(2, 99), int4=(0.3, 98), dense=(4, 90))
    assert [row["name"] for row in table.ordered(run)] == ["dense", "lra", "kd", "int4", "int8"]


def test_the_front_is_what_no_other_beats(rng):
    rows = [{"cost": float(cost), "top1": float(top1)} for cost, top1 in rng.integers(1, 9, (40, 2))]

    def beaten(row):
        return any(one["cost"] <= row["cost"] and one["top1"] >= row["top1"] and one != row for one in rows)

    wanted = {(row["cost"], row["top1"]) for row in rows if not beaten(row)}
    assert [(row["cost"], row["top1"]) for row in table.front(rows, "cost")] == sorted(wanted)


def test_models_are_compared_image_by_image():
    answers = {
        "dense": {"answer": np.array([0, 1, 2, 3, 4]), "label": np.array([0, 1, 2, 9, 9])},
        "kd": {"answer": np.array([0, 1, 0, 9, 5]), "label": np.array([0, 1, 2, 9, 9])},
    }
    answers = {name: one | {"image": np.arange(5), "probability": np.ones(5)} for name, one in answers.items()}
    found = table.pair(some(dense=(1, 60), kd=(1, 60))._replace(answers=answers), "kd")
    assert found[:5] == (5, 2, 1, 1, 3)


@pytest.mark.parametrize("right", [0.7, 0.995])
def test_the_margin_holds_the_true_difference(rng, right):
    """In 95 of 100 draws of 400 images; the second model is worse by 1 point, and errs on images of its own."""
    held, label = [], np.zeros(400, int)
    for _ in range(400):
        dense = rng.random(400) > right
        other = np.where(rng.random(400) < 0.01, 1, dense)
        pair = {
            name: {"answer": answer.astype(int), "label": label, "image": np.arange(400), "probability": label}
            for name, answer in (("dense", dense), ("kd", other))
        }
        found = table.pair(some(dense=(1, 1), kd=(1, 1))._replace(answers=pair), "kd")
        held.append(abs((found.other - found.dense) / 4 + 100 * 0.01 * right) <= found.margin)
    assert np.mean(held) > 0.93


def test_examples_show_every_way_to_differ(rng):
    dense, other = (
        {"label": np.zeros(500, int), "answer": rng.integers(0, 3, 500), "probability": rng.random(500)}
        for _ in range(2)
    )
    rows = examples.choose(dense, other)
    assert len(set(rows)) == len(rows) == examples.MOST
    pairs = {(dense["answer"][row] == 0, other["answer"][row] == 0) for row in rows}
    assert pairs == {(True, False), (False, True), (False, False)}
    assert all(dense["answer"][row] != other["answer"][row] for row in rows)
    assert len(examples.choose(dense, dense)) == 0


def test_the_page_shows_images_that_differ(whole):
    ws, text = whole
    shown = section(text, "Images that are answered differently")
    assert f"answer 5 of {ROW['n_images']} images differently" in shown
    assert Page(shown).text["td"] == ["291", "3", "2", "1"]
    stored = json.loads((ws.directory / "report" / "examples.json").read_text())
    assert sorted(one["index"] for one in stored["images"]) == [0, 1, 3, 4, 5]
    for one in stored["images"]:
        kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2]))))
        assert np.array_equal(kept, np.asarray(ws.preprocess.geometry(ws.source("eval")[one["index"]]["image"])))
        assert one["src"] in shown


def test_no_answer_that_differs_and_no_answers_are_said(tmp_path):
    ws = opened(tmp_path)
    add_rows(ws)
    assert "was not kept" in section(rendered(ws), "Images that are answered differently")
    add_answers(ws, {"dense": [1], "int8_wads": [1]})
    assert "alike" in section(rendered(ws), "Images that are answered differently")


def test_a_class_without_a_name_has_a_number(whole):
    run = read.run(whole[0].directory)
    names = {name: {**meta, "class_names": ["zero"]} for name, meta in run.metas.items()}
    labels = {one["label"] for one in page.examples(run._replace(metas=names))["images"]}
    assert labels <= {"zero", *(f"class {index}" for index in range(1, 10))} and len(labels) > 1


def test_synonyms_are_left_out_where_one_name_is_enough():
    names = ["crane, bird", "crane", "bell cote, bell cot"]
    assert page._short_names(names, [2, 0]) == {2: "bell cote", 0: "crane"}
    assert page._short_names(names, [0, 1]) == {0: "crane, bird", 1: "crane"}


def test_blocks_of_a_panel_are_in_their_order():
    """Whatever the order of the products; 10 comes after 2."""
    errors = {f"blocks_{block}/attn/qkv:x": 0.01 for block in (10, 0, 2)} | {"blocks_1/mlp/fc1:x": 0.01}
    (grid,) = sections.activations({}, {"int8": errors}, "").grids
    for figure in grid.figures:
        found = Page(figure.svg).text["text"]
        assert [word for word in found if word in ("0", "1", "2", "10")][:4] == ["0", "1", "2", "10"]


def test_latency_is_drawn_where_it_is_measured(whole, tmp_path):
    assert "onnxruntime, 1 thread, batch of 1, a processor" in whole[1]
    assert "2.5\N{MULTIPLICATION SIGN}" in whole[1]
    assert "12.2" in Page(whole[1]).text["td"]
    ws = opened(tmp_path)
    add_rows(ws)
    text = section(rendered(ws), "Accuracy and cost")
    assert "lraqvit_jax.bench latency" in text and "milliseconds" not in text


def test_numbers_of_points_keep_apart(rng):
    for count in (1, 5, 40):
        heights = np.sort(rng.uniform(0, 200, count))[::-1]
        moved = panels._spread(list(heights), 200, 0)
        assert np.all(-np.diff(moved) >= min(panels.GAP, 200 / max(1, count - 1)) - 1e-9)
        assert min(moved) >= -1e-9 and max(moved) <= 200 + 1e-9
    assert panels._spread([100.0, 100.0], 200, 0) == [100 + panels.GAP / 2, 100 - panels.GAP / 2]
    assert panels._spread([100.0, 50.0], 200, 0) == [100.0, 50.0]


@pytest.mark.parametrize("ends", [(0.4, 3.5), (1.9, 2.9), (1, 900), (0.012, 0.03), (10, 16)])
def test_an_axis_of_costs_has_numbers(ends):
    ticks = panels._round_ticks(*ends)
    assert panels.ENOUGH <= len(ticks) <= 9
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)


def test_layers_have_a_place():
    assert read.place("blocks_11/mlp/fc1") == ("11", "mlp/fc1")
    assert read.place("stages_1/blocks_0/attn/qkv") == ("1.0", "attn/qkv")
    assert read.place("stages_1/downsample/reduction") == ("", "stages_1/downsample/reduction")


def test_the_map_says_what_share_a_pair_keeps(whole):
    run = read.run(whole[0].directory)
    found = page.rank_map(run)
    sizes = {info.path: info.features_in * info.features_out for info in run.layers if info.compressible}
    kept = {
        path: layer.rank * (info.features_in + info.features_out) if (layer := run.plan[path]).rank else sizes[path]
        for path, info in ((info.path, info) for info in run.layers if info.compressible)
    }
    assert found["share"] == f"{100 * sum(kept.values()) / sum(sizes.values()):.1f}"
    for path, count in kept.items():
        block, kind = read.place(path)
        cell = found["kinds"][kind][block]
        assert cell["rank"] == run.plan[path].rank
        assert cell["rank"] == 0 or cell["share"] == pytest.approx(count / sizes[path])


@pytest.fixture(scope="module")
def two(whole, tmp_path_factory):
    """Work directories of the same name in two folders; the second has another seed and one more run."""
    folder = tmp_path_factory.mktemp("two")
    runs = {**fields()["runs"], "lra": fields()["runs"]["rb_lra_kd"]}
    ws = opened(folder / "other" / whole[0].directory.name, seed=5, runs=runs)
    add_rows(ws, ROWS[:2])
    add_dense(ws, np.random.default_rng(1))
    return [whole[0].directory, ws.directory]


def test_runs_are_compared_side_by_side(two, tmp_path):
    target = command.make([str(path) for path in two], str(tmp_path / "both.html"))
    text = target.read_text()
    found = Page(text)
    names = [f"{path.parent.name}/{path.name}" for path in two]
    assert all(name in text for name in names)
    listed = section(text.replace("<wbr>", ""), "Results")
    numbers = re.findall(r'<span class="n">(\d+) </span>(\w+)', listed)
    assert [name for _, name in numbers] == ["dense", "rb_lra_kd", "int8_wads", "dense", "rb_lra_kd"]
    assert [int(number) for number, _ in numbers] == [1, 2, 3, 4, 5]
    differ = Page(section(text, "What differs in the configurations"))
    assert differ.text["th"] == ["field", *names, "runs.lra", "seed"]
    assert differ.text["td"] == ["-", "set", "0", "5"]
    assert "different images" not in text
    assert len([attrs for _, attrs in found.tags if "map" in attrs.get("class", "").split()]) == 2
    assert max(collections.Counter(found.attributes("id")).values()) == 1
    assert command.make([str(path) for path in two], str(target)).read_text() == text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "There is no directory"),
        (lambda folder: (folder / "results.json").unlink(), "has no results.json"),
        (lambda folder: (folder / "results.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text('{"config": 3}'), "config.json has config = 3"),
        (lambda folder: (folder / "plan.json").write_text("[]"), "plan.json is no JSON object"),
        (lambda folder: (folder / read.LATENCY).write_text('{"rows": [3]}'), "latency-runtimes.json has row = 3"),
        (
            lambda folder: (folder / "report" / "examples.json").write_text('{"images": 1}'),
            "examples.json has images = 1",
        ),
        (
            lambda folder: (folder / "report" / "answers-dense.npz").write_bytes(b"?"),
            "answers-dense.npz cannot be read",
        ),
    ],
)
def test_a_mistake_is_one_sentence(whole, tmp_path, capsys, monkeypatch, spoil, words):
    folder = shutil.copytree(whole[0].directory, tmp_path / "copy")
    spoil(folder)
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--output", str(tmp_path / "new.html")])
    with pytest.raises(SystemExit) as stopped:
        arguments.run(command.command)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda folder: [folder, folder], "named twice"),
        (lambda folder: [folder, "--output", f"{folder}/no/such/place.html"], "--output"),
        (lambda folder: [], "following arguments are required: DIR"),
        (lambda folder: [folder, "--colour"], "--colour is no argument here"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(whole, capsys, monkeypatch, given, words):
    monkeypatch.setattr(sys, "argv", ["report", *given(str(whole[0].directory))])
    with pytest.raises(SystemExit) as stopped:
        arguments.run(command.command)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
