"""What the plan left of every layer and block, for the map of the page and its table."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

from lraqvit_jax.plan import blocks
from lraqvit_jax.plan.cost import layer_cost
from lraqvit_jax.plan.records import LinearInfo, Plan, resolved
from lraqvit_jax.report.blocks import span
from lraqvit_jax.report.read import Run, place
from lraqvit_jax.report.words import TIMES

PAIRS = (
    f"A pair of rank r takes the place of a kernel of m {TIMES} n: r (m + n) numbers for m n, or r (m + n - r) where "
    "an identity block stands in it. Each cell has the rank and the share of the kernel's parameters that are left. "
    "A layer in which a pair would save nothing stays dense."
)
PARTS = (
    " Where blocks are planned as a whole, rows of their own say how many channels are left of every head (score: "
    "where queries meet keys; value: what goes on to the projection), and how many hidden units, with their share; a "
    "kernel is one without a pair, as narrow as the hidden units are."
)


class Cell(NamedTuple):
    """What is left of a part of a block: in words or a number, and as a share of what was there; 1 is all of it."""

    text: str
    share: float


def size_map(run: Run) -> dict[str, Any]:
    """What is left by part (rows) and block (columns), of each block as a whole, and of all of them."""
    layers, dense = resolved(run.layers, run.plan), {info.path: info for info in run.layers}
    of_parts, parts = _parts(run)
    of_layers: dict[str, dict[str, Cell]] = {}
    outside = []
    for info in layers:
        block, kind = place(info.path)
        if not block:
            rank = run.plan[info.path].rank
            outside.append(f"{info.path} {f'rank {rank}' if rank else 'dense'}")
        elif info.path not in parts:
            whole = dense[info.path]
            share = _kernels(run.plan, [info]) / (whole.features_in * whole.features_out)
            of_layers.setdefault(kind, {})[block] = Cell(_form(run.plan, info, whole), share)
    kinds = {kind: cells for kind, cells in of_parts.items() if kind != HIDDEN}
    kinds |= {kind: cells for kind, cells in of_layers.items() if not kind.startswith("mlp/")}
    kinds |= {HIDDEN: of_parts[HIDDEN]} if HIDDEN in of_parts else {}
    kinds |= {kind: cells for kind, cells in of_layers.items() if kind.startswith("mlp/")}
    shares = _shares(run.plan, layers, run.layers)
    return {
        "name": run.name,
        "blocks": [block for block in shares if block],
        "kinds": {f"{kind}{_of(run, kind)}": cells for kind, cells in kinds.items()},
        "total": {block: Cell("", share) for block, share in shares.items() if block},
        "outside": outside,
        "share": f"{100 * shares['']:.1f}" if run.layers else "",
        "text": PAIRS + PARTS * bool(of_parts),
    }


SCORES, VALUES, HIDDEN = "score channels a head", "value channels a head", "hidden units"


def _parts(run: Run) -> tuple[dict[str, dict[str, Cell]], set[str]]:
    """Channels and hidden units by block where whole blocks are planned, and the layers that they say all of."""
    cells: dict[str, dict[str, Cell]] = {}
    covered: set[str] = set()
    for block in blocks.narrowed((info for info in run.layers if info.compressible), run.plan):
        sizes, whole = blocks.sizes_of(block, run.plan), blocks.full(block)
        parts = [(SCORES, sizes.score, whole.score), (VALUES, sizes.value, whole.value)] * bool(block.attention)
        parts += [(HIDDEN, sizes.width, whole.width)] * bool(block.mlp)
        for kind, size, of in parts:
            cells.setdefault(kind, {})[place(f"{block.path}/mlp")[0]] = Cell(
                "all" if size == of else str(size), size / of
            )
        attention = ("query", "key", "value", "proj") if block.attention else ()
        covered |= {f"{block.path}/attn/{name}" for name in attention}
    if HIDDEN in cells:
        whole_mlps = {place(f"{block.path}/mlp")[0] for block in _blocks(run) if block.mlp} - {*cells[HIDDEN]}
        cells[HIDDEN] |= dict.fromkeys(whole_mlps, Cell("all", 1.0))
    return cells, covered


def _blocks(run: Run) -> list[blocks.Block]:
    return blocks.blocks(info for info in run.layers if info.compressible)


def _of(run: Run, kind: str) -> str:
    """What a row's numbers are of: ", of 64"; "" for ranks."""
    if kind not in (SCORES, VALUES, HIDDEN):
        return ""
    wholes = [blocks.full(block) for block in _blocks(run)]
    return f", of {span([one.width if kind == HIDDEN else one.score for one in wholes])}"


def _form(plan: Plan, info: LinearInfo, whole: LinearInfo) -> str:
    """A layer in a word: its rank, or whether its kernel is the dense one's."""
    if plan[info.path].rank:
        return str(plan[info.path].rank)
    same = (info.features_in, info.features_out) == (whole.features_in, whole.features_out)
    return "dense" if same else "kernel"


def _kernels(plan: Plan, layers: Sequence[LinearInfo]) -> int:
    """Parameters of the layers' kernels."""
    return sum(layer_cost(info, plan[info.path]).params - info.features_out * info.bias for info in layers)


def _shares(plan: Plan, layers: Sequence[LinearInfo], dense: Sequence[LinearInfo]) -> dict[str, float]:
    """Share of the kernels' parameters that each block keeps; of all encoder layers, in blocks or not, under ""."""
    left, whole = collections.Counter[str](), collections.Counter[str]()
    for info in layers:
        for block in {place(info.path)[0], ""} if info.compressible else ():
            left[block] += _kernels(plan, [info])
    for info in dense:
        for block in {place(info.path)[0], ""} if info.compressible else ():
            whole[block] += info.features_in * info.features_out
    return {block: left[block] / count for block, count in whole.items()}


def plan_rows(plan: Plan, layers: Sequence[LinearInfo]) -> list[dict[str, Any]]:
    """One row of the plan table for each layer that the plan has."""
    return [
        {
            "path": info.path,
            "shape": f"{info.features_in} x {info.features_out}",
            "break_even": info.break_even_of(plan[info.path]),
            "params": layer_cost(info, plan[info.path]).params,
            "mflops": layer_cost(info, plan[info.path]).flops / 1e6,
            **{name: getattr(plan[info.path], name) for name in ("form", "rank", "bits", "granularity")},
        }
        for info in resolved(layers, plan)
    ]
