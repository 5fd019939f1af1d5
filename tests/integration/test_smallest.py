"""The search for the smallest model that is good enough, through the command, on digits."""

import json
import signal

import numpy as np
import pytest

import lraqvit_jax
from lraqvit_jax.base import paired
from lraqvit_jax.plan.files import read_plan
from lraqvit_jax.tasks import search
from tests.integration import command
from tests.integration.test_processes import joined
from tests.integration.test_resume import parameters

DIGITS = (
    *("--config.model=vit_pico", "--config.weights=", "--config.augment=", "--config.teacher.steps=40"),
    *("--config.data.train=embedded:digits", "--config.data.eval=embedded:digits", "--config.batch_size=32"),
    *("--config.preprocess.size=8", "--config.preprocess.crop_pct=1.0", "--config.preprocess.interpolation=bilinear"),
    *("--config.teacher.learning_rate=3e-3", "--config.eval_batch_size=100", "--config.plan.multiple=4"),
    *("--config.factorize.calibration_images=64", "--config.plan.measured_images=16", "--config.plan.rounds=1"),
    "--config.goal.resolution=0.05",
)
ALONE = "--config.goal.families=()"
GOAL = ("--config.goal.max_drop=2.0", "--config.goal.by=mean", "--config.goal.budgets=(0.6,)")
ROWS = "--stages=teacher,plan,factorize,distill,merge,quantize,evaluate"
"""To the table, without files and report, which the run `searched` has."""


def smallest(workdir, *arguments, config="configs/smallest.py", **options):
    rounding = () if config.endswith(":float") else ("--config.quant.methods.smallest.rounding=nearest",)
    return command.run(f"--config={config}", f"--workdir={workdir}", *DIGITS, *rounding, *arguments, **options)


def points(workdir):
    return json.loads((workdir / "search" / "search.json").read_text())


def is_what_was_asked(workdir):
    """The arrays of `smallest` are those of the model that the search chose, whose name it gives."""
    arrays, chosen = parameters(workdir), points(workdir)["chosen"]
    mine, asked = (
        {path.partition("/")[2]: leaf for path, leaf in arrays.items() if path.startswith(f"{name}/")}
        for name in ("smallest", chosen)
    )
    assert mine.keys() == asked.keys() != set()
    assert all(np.array_equal(mine[path], asked[path]) for path in mine)
    return chosen


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("searched")
    return workdir, smallest(workdir, *GOAL, check=True)


def test_the_row_says_what_was_lost_on_all_images_and_on_those_never_seen(searched):
    workdir, _ = searched
    row = command.rows(workdir)["smallest"]
    dense, small = (np.load(workdir / "report" / f"answers-{name}.npz") for name in ("dense", "smallest"))
    right = [of_one["answer"] == of_one["label"] for of_one in (dense, small)]
    drop = paired.drop(*right)
    assert (row["drop"], row["drop_low"], row["drop_high"]) == drop[:3]
    assert row["drop"] == pytest.approx(command.rows(workdir)["dense"]["top1"] - row["top1"])
    _, held_out = search.split(row["n_images"], 0.5, 0)
    drop = paired.drop(right[0][held_out], right[1][held_out])
    assert (row["drop_held_out"], row["drop_held_out_low"], row["drop_held_out_high"]) == drop[:3]
    assert row["n_images_held_out"] == len(held_out)


def test_what_is_taken_is_the_smallest_that_was_kept_and_the_next_smaller_was_refused(searched):
    workdir, _ = searched
    content = points(workdir)
    tried = {point["budget"]: point for point in content["points"] if point["family"] == "both"}
    chosen = min(budget for budget, point in tried.items() if point["keeps"])
    assert content["chosen"] == f"both-{chosen:g}"
    assert tried[chosen]["drop"] <= 2
    below = round(chosen - 0.05, 6)
    assert below < 0.1 or not tried[below]["keeps"]
    assert all(point["size_mb"] > 0 for point in content["points"])


def test_the_row_is_the_model_that_the_search_asked(searched):
    """The stages make of its plan what the search made, to the last bit."""
    workdir, _ = searched
    chosen = is_what_was_asked(workdir)
    images = np.load(workdir / "report" / "answers-smallest.npz")
    seen, _ = search.split(len(images["image"]), 0.5, 0)
    dense = np.load(workdir / "report" / "answers-dense.npz")
    drop = paired.drop(*((one["answer"] == one["label"])[seen] for one in (dense, images)))
    point = next(point for point in points(workdir)["points"] if point["name"] == chosen)
    assert point["drop"] == pytest.approx(drop.drop)


def test_every_model_that_was_tried_can_be_loaded_by_its_name(searched, tmp_path):
    workdir, _ = searched
    names = [point["name"] for point in points(workdir)["points"]]
    assert {name.partition("-")[0] for name in names} >= {"both", "pairs", "products"}
    for name in names:
        model = lraqvit_jax.load(workdir, name)
        assert model.logits(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 10)
    model.export_onnx(tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").stat().st_size


def test_table_report_and_pick(searched):
    workdir, done = searched
    assert "To take: smallest" in done.stdout
    page = (workdir / "report.html").read_text()
    assert "Search: the smallest that is good enough" in page
    assert points(workdir)["chosen"] in page
    assert (workdir / "search" / "frontier.svg").read_text().startswith("<svg")
    assert lraqvit_jax.load(workdir).meta["name"] == "smallest"


def test_the_same_command_again_asks_nothing(searched):
    workdir, _ = searched
    before = points(workdir), read_plan(workdir / "plan.json")
    again = smallest(workdir, *GOAL, check=True)
    assert "points lost" not in again.stdout
    assert (points(workdir), read_plan(workdir / "plan.json")) == before


def test_distilled_models_go_on_below_what_is_found_untrained(tmp_path):
    """`steps` finds a smaller one on the same images, and the stages train it to the same bits as the search did."""
    distil = ("--config.steps=60", "--config.optimizer.learning_rate=3e-3", "--config.goal.trained=2")
    smallest(tmp_path / "distilled", *GOAL, ALONE, *distil, ROWS, check=True)
    content = points(tmp_path / "distilled")
    untrained = min(point["budget"] for point in content["points"] if point["keeps"] and not point["steps"])
    tried = [point for point in content["points"] if point["steps"]]
    assert 1 <= len(tried) <= 2
    assert all(point["steps"] == 60 and point["budget"] < untrained for point in tried)
    kept = [point for point in tried if point["keeps"]]
    assert content["chosen"] == min(kept, key=lambda point: point["budget"])["name"]
    assert command.rows(tmp_path / "distilled")["smallest"]["drop"] < 10
    is_what_was_asked(tmp_path / "distilled")


KILLED = """
import os
from lraqvit_jax.stages import search, searched
before, calls = {owner}.{function}, []
def deadly(*arguments, **fields):
    calls.append(None)
    last = len(calls) == {call}
    if last and not {after}:
        os.kill(os.getpid(), 9)
    result = before(*arguments, **fields)
    if last:
        os.kill(os.getpid(), 9)
    return result
{owner}.{function} = deadly
"""
KILLS = [
    KILLED.format(owner="searched.Plans", function="plan", call=1, after=True),  # planned, nothing made
    KILLED.format(owner="search.merge", function="run", call=1, after=False),  # a model half made
    KILLED.format(owner="search.Search", function="_make", call=1, after=True),  # made, not asked
    KILLED.format(owner="searched.Record", function="add", call=1, after=False),  # asked, not written
    KILLED.format(owner="searched.Record", function="add", call=2, after=True),
    KILLED.format(owner="search.Search", function="_make", call=3, after=True),
]


def test_killed_again_and_again_it_finds_the_same(searched, tmp_path):
    workdir, _ = searched
    for prelude in KILLS:
        assert smallest(tmp_path, *GOAL, prelude=prelude).returncode == -signal.SIGKILL
    smallest(tmp_path, *GOAL, ROWS, check=True)
    assert points(tmp_path) == points(workdir)
    assert read_plan(tmp_path / "plan.json") == read_plan(workdir / "plan.json")
    arrays, others = parameters(tmp_path), parameters(workdir)
    assert arrays.keys() == others.keys()
    assert all(np.array_equal(arrays[path], others[path]) for path in arrays)


def test_two_processes_find_what_one_does(tmp_path):
    fields = (ALONE, "--config.goal.max_drop=2.0", "--config.goal.by=mean", "--config.quant.dense=False")
    fields += ("--config.goal.resolution=0.2", "--stages=teacher,plan", "--config.eval_batch_size=50")
    fields += ("--config.quant.methods.smallest.rounding=nearest",)
    several = joined(tmp_path / "two", *DIGITS, *fields, devices=1, config="configs/smallest.py")
    assert [process.returncode for process in several] == [0, 0], several[0].stderr[-2000:]
    smallest(tmp_path / "one", *fields, devices=2, check=True)
    two, one = (points(tmp_path / name) for name in ("two", "one"))
    assert two["chosen"] == one["chosen"]
    assert [point["name"] for point in two["points"]] == [point["name"] for point in one["points"]]
    assert [point["size_mb"] for point in two["points"]] == pytest.approx(
        [p["size_mb"] for p in one["points"]], rel=0.02
    )


def test_a_bound_alone_gives_the_largest_that_keeps_within_it(tmp_path):
    smallest(tmp_path, ALONE, "--config.goal.max_mb=0.035", ROWS, check=True)
    content = points(tmp_path)
    (point,) = content["points"]
    assert point["size_mb"] <= 0.035
    assert command.rows(tmp_path)["smallest"]["size_mb"] == point["size_mb"]
    more = f"--config.goal.max_mb={point['size_mb'] + 0.004}"
    smallest(tmp_path / "more", ALONE, more, "--stages=teacher,plan", check=True)
    (other,) = points(tmp_path / "more")["points"]
    assert point["budget"] <= other["budget"] <= point["budget"] + 0.2


def test_floats_by_multiply_accumulates(tmp_path):
    fields = (ALONE, "--config.plan.unit=macs", "--config.goal.max_drop=3", "--config.goal.by=mean")
    smallest(tmp_path, *fields, ROWS, config="configs/smallest.py:float", check=True)
    rows = command.rows(tmp_path)
    assert rows["smallest"]["linear_gflops"] < rows["dense"]["linear_gflops"]
    assert "drop_held_out" in rows["smallest"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("--config.goal.max_drop=1", "--config.plan.method=logits"), "plan.method=products"),
        (("--config.goal.max_ms=5",), "plan.latency"),
        (("--config.goal.min_top1=99.9",), "below goal.min_top1=99.9"),
        (("--config.goal.max_mb=0.001",), "goal's size_mb of 0.001"),
        (("--config.goal.max_drop=0", "--config.goal.by=bound", "--config.goal.resolution=0.3"), "goal.by=mean"),
        (("--config.goal.by=median",), "goal.by"),
    ],
)
def test_goals_that_cannot_be_reached_are_refused_in_one_sentence(fields, sentence, searched, tmp_path):
    done = smallest(tmp_path, ALONE, "--config.teacher.steps=20", *fields)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_says_that_it_searches(tmp_path):
    done = smallest(tmp_path, *GOAL, "--dry_run", check=True)
    assert "makes and asks models" in done.stdout
    assert "plan " in done.stdout
    assert not any(tmp_path.iterdir())
