"""What the page says of the sizes of layers and blocks, against arrays that models declare, and of bench lowrank."""

import html

import jax
import numpy as np
import pytest

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.devices import sharding
from lraqvit_jax.plan import blocks
from lraqvit_jax.plan.records import dense
from lraqvit_jax.report import frontier, page, read, sizes, table
from tests.unit import small
from tests.unit.report.made import Page, add_rows, opened, rendered, section


def kernels(run, path, plan):
    """Numbers in the kernels of the layers below a path, of a model with that plan."""
    meta = run.metas["dense"]
    model = models.create(meta["model"], num_classes=10, image_size=meta["preprocess"]["size"], plan=plan)
    params = trees.get(sharding.abstract_params(model, meta["preprocess"]["size"], small.MESH), path)
    return sum(leaf.size for leaf in jax.tree.leaves(params) if len(leaf.shape) == 2 and leaf.dtype == np.float32)


def by_products(run):
    """A run whose first block is cut in every part, the second only by what costs nothing, the others not at all."""
    first, second, *_ = blocks.blocks(info for info in run.layers if info.compressible)
    whole = blocks.full(first)
    cut = blocks.Sizes(whole.score - 1, whole.value - 2, whole.width - 8, 5, 7)
    return run._replace(plan=blocks.plan_of(run.layers, {first.path: cut, second.path: whole})), cut, whole


def test_the_map_says_what_share_a_pair_keeps(whole):
    run = read.run(whole[0].directory)
    found, everything = sizes.size_map(run), dense(run.layers)
    for info in (info for info in run.layers if info.compressible):
        block, kind = read.place(info.path)
        cell, rank = found["kinds"][kind][block], run.plan[info.path].rank
        assert cell.text == (str(rank) if rank else "dense")
        held = rank * (info.features_in + info.features_out) or info.features_in * info.features_out
        assert cell.share == pytest.approx(held / (info.features_in * info.features_out))
    assert found["total"]["0"].share == pytest.approx(
        sum(rank_cost(info, run.plan) for info in run.layers if info.path.startswith("blocks_0/"))
        / kernels(run, "blocks_0", everything)
    )


def rank_cost(info, plan):
    rank = plan[info.path].rank
    return rank * (info.features_in + info.features_out) or info.features_in * info.features_out


def test_the_map_of_whole_blocks_says_what_is_left_of_each_part(whole):
    run, cut, full = by_products(read.run(whole[0].directory))
    found, everything = sizes.size_map(run), dense(run.layers)
    kinds = found["kinds"]
    assert list(kinds)[:2] == [f"score channels a head, of {full.score}", f"value channels a head, of {full.value}"]
    for kind, size, of in (
        (f"score channels a head, of {full.score}", cut.score, full.score),
        (f"value channels a head, of {full.value}", cut.value, full.value),
        (f"hidden units, of {full.width}", cut.width, full.width),
    ):
        assert kinds[kind]["0"] == (str(size), size / of)
    assert kinds[f"score channels a head, of {full.score}"]["1"] == ("all", 1)
    assert {*kinds[f"hidden units, of {full.width}"].values()} == {(str(cut.width), cut.width / full.width), ("all", 1)}
    assert {*kinds[f"hidden units, of {full.width}"]} == {*found["blocks"]}
    assert not {"attn/query", "attn/key", "attn/value"} & {*kinds}
    for kind, rank in (("mlp/fc1", cut.fc1), ("mlp/fc2", cut.fc2)):
        path = f"blocks_0/{kind}"
        assert kinds[kind]["0"].text == str(rank)
        held = kernels(run, path, run.plan) / kernels(run, path, everything)
        assert kinds[kind]["0"].share == pytest.approx(held)
        assert kinds[kind]["1"] == ("dense", 1)
    for block in found["blocks"]:
        held = kernels(run, f"blocks_{block}", run.plan) / kernels(run, f"blocks_{block}", everything)
        assert found["total"][block].share == pytest.approx(held)
    assert "hidden units" in found["text"]


def test_the_page_of_whole_blocks(whole):
    run, cut, full = by_products(read.run(whole[0].directory))
    shown = Page(section(page.one(run), "Ranks"))
    assert {str(cut.score), str(cut.value), str(cut.width), str(cut.fc1), "all"} <= set(shown.text["td"])
    assert f"hidden units, of {full.width}" in shown.text["th"]
    assert "blocks_0/attn/key" in shown.text["th"]


def test_what_bench_lowrank_measured_is_drawn_with_the_models_of_the_run(whole):
    run = read.run(whole[0].directory)
    (grid,) = frontier.frontier(run, table.rows(run))
    deviation = np.std([60, 64], ddof=1)
    assert [tuple(row) for row in grid.rows] == [
        ("logits, svd", "0.9", "0.024", "70.00", "1", ""),
        ("logits, svd", "0.5", "0.015", f"62.00 ± {deviation:.2f}", "2", ""),
        ("products, weighted_kfac", "0.5", "0.014", "72.50", "1", "yes"),
    ]
    numbers = [word for word in Page(grid.figures[0].svg).text["text"] if word in ("1", "2", "3")]
    assert sorted(numbers) == ["1", "2", "3"]
    assert html.escape(grid.heading) in section(whole[1], "Accuracy and cost")


def test_without_bench_lowrank_nothing_is_said(tmp_path):
    ws = opened(tmp_path)
    add_rows(ws)
    assert frontier.HEADING not in rendered(ws)
