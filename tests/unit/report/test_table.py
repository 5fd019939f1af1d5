"""The order of the models, the one that is recommended, and how far two are apart."""

import numpy as np
import pytest

from lraqvit_jax.report import read, table


def some(**rows):
    """A run of models, (MB, top-1) by name."""
    listed = [{"name": name, "size_mb": size, "top1": top1} for name, (size, top1) in rows.items()]
    config = {"runs": {"kd": {}}, "quant": {"methods": {"int8": {}, "int4": {}}}}
    return read.Run("run", "vit", listed, config, {}, (), {}, (), {}, {}, {}, {}, {}, {}, {}, {})


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


@pytest.mark.parametrize(("fields", "wanted"), [({"drop": 3.0}, "smallest"), ({}, "int8")])
def test_what_a_goal_asked_for_is_taken_and_not_what_happens_to_be_called_so(fields, wanted):
    run = some(dense=(4, 90), smallest=(0.6, 87), int8=(0.5, 89.2))
    rows = [{**row, **fields} if row["name"] == "smallest" else row for row in run.rows]
    assert table.pick(run._replace(rows=rows))["name"] == wanted


def test_the_order_is_by_group_then_accuracy():
    run = some(int8=(0.5, 97), kd=(2, 80), lra=(2, 99), int4=(0.3, 98), dense=(4, 90))
    assert [row["name"] for row in table.ordered(run)] == ["dense", "lra", "kd", "int4", "int8"]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"steps": 9}, "trained"),
        ({"steps": 0}, "factorized"),
        ({"steps": 0, "epochs": 0.5}, "trained"),
        ({"steps": 0, "runs": {"kd": {"steps": 3}}}, "trained"),
    ],
)
def test_a_run_of_no_steps_is_not_trained(fields, wanted):
    run = some(dense=(4, 90), kd=(2, 80))
    assert table.group(run._replace(config={**run.config, **fields}), "kd") == wanted


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
