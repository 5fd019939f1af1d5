"""Images that two models answer differently."""

import base64
import io
import json

import numpy as np
from PIL import Image

from lraqvit_jax.report import examples, page, read
from tests.unit.report.made import ROW, Page, add_answers, add_rows, opened, rendered, section


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
