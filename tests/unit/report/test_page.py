"""The page, from a work directory made by hand."""

import collections
import itertools
import json
import re
import shutil

import jax
import pytest

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.report import __main__ as command
from lraqvit_jax.report import words
from lraqvit_jax.stages import report
from tests.unit.report.made import ROWS, Page, add_rows, opened, rendered, section


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
    assert json.loads(shown) == whole[0].config.to_dict()


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


def test_latency_is_drawn_where_it_is_measured(whole, tmp_path):
    assert "onnxruntime, 1 thread, batch of 1, a processor" in whole[1]
    assert "2.5\N{MULTIPLICATION SIGN}" in whole[1]
    assert "12.2" in Page(whole[1]).text["td"]
    ws = opened(tmp_path)
    add_rows(ws)
    text = section(rendered(ws), "Accuracy and cost")
    assert "lraqvit_jax.bench latency" in text and "milliseconds" not in text
