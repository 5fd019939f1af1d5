"""bench lowrank: decompositions x ways to choose ranks x budgets x seeds, with and without training.

Every cell of the grid `config.grid` becomes a row of WORKDIR/lowrank.json, at once: the same command goes on where it
stopped. A row without training is the dense model with every planned kernel replaced by the product of its pair, which
computes what the pair computes, and spares a compilation for every plan. A row with training is a run of the whole
pipeline in WORKDIR/trained, from the same dense model.
"""

import copy
import dataclasses
import itertools
import json
import pathlib
import shutil
import statistics as stats
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lraqvit_jax import main
from lraqvit_jax.base import files, trees
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.calibration.moments import Moments
from lraqvit_jax.config import Config
from lraqvit_jax.devices import sharding
from lraqvit_jax.lowrank import decomposition, reparam, spectra
from lraqvit_jax.options.bench import LowRankGrid
from lraqvit_jax.options.training import Run
from lraqvit_jax.plan import blocks, cost, ranks
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.report import figures
from lraqvit_jax.run import opening, results
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages import factorize, plan, teacher
from lraqvit_jax.stages.evaluate import other_params
from lraqvit_jax.tasks import classification as evaluate
from lraqvit_jax.weights import artifacts
from lraqvit_jax.weights.artifacts import Artifact

WR = "wr"
"""Not a decomposition: truncated SVD with the paper's weight reconstruction merged into it, as training starts."""
MEND = "delete it to begin anew"
KEYS = ("name", "method", "budget", "seed")
COLUMNS = ("params", "linear_gflops", "top1", "top5", "n_images")
Row = dict[str, Any]


def run(config: Config, workdir: str) -> None:
    """Fills the grid, then prints the table and writes lowrank.svg.

    Raises:
        UserError: bad input; a name in the grid that is none.
    """
    ws = opening.open_workspace(config, workdir)
    grid = ws.config.grid
    _check(grid, ws.config.runs)
    teacher.run(ws)
    dense, table = ws.load("dense", "teacher"), Table(ws.directory / "lowrank.json")
    if not table.has(("dense", "", 1.0, 0)):
        table.add(("dense", "", 1.0, 0), _row(ws, dense, dense.params, plan_lib.dense(ws.spec.layers)))
    for seed in grid.seeds:
        for key, row in _untrained(ws, dense, seed, table):
            table.add(key, row)
    for cell in itertools.product(grid.methods, grid.budgets, grid.seeds):
        missing = [name for name in grid.runs if not table.has((name, *cell))]
        for name, row in _trained(ws, missing, *cell).items() if missing else ():
            table.add((name, *cell), row)
    print(table.text())
    files.write_atomically(ws.directory / "lowrank.svg", figures.pareto(table.rows))
    print(f"\n{ws.directory / 'lowrank.json'}\n{ws.directory / 'lowrank.svg'}")


class Table:
    """The rows so far, on disk after each."""

    def __init__(self, path: pathlib.Path, keys: tuple[str, ...] = KEYS) -> None:
        self.path, self._keys = path, keys
        self.rows: list[Row] = files.json_object(path, MEND).get("rows", []) if path.exists() else []
        right = isinstance(self.rows, list) and all(isinstance(row, dict) and {*keys} <= {*row} for row in self.rows)
        if not right:
            raise UserError(f"{path} has no rows with {', '.join(keys)}; {MEND}.")

    def has(self, key: tuple) -> bool:
        return any(tuple(row[name] for name in self._keys) == key for row in self.rows)

    def add(self, key: tuple, row: Row) -> None:
        self.rows.append(dict(zip(self._keys, key, strict=True)) | row)
        files.write_atomically(self.path, json.dumps({"schema": 1, "rows": self.rows}, indent=1) + "\n")
        print(f"{' '.join(map(str, key[:-1]))} seed {key[-1]}: top-1 {row['top1']:.2f} %", flush=True)

    def text(self) -> str:
        """Top-1 by method, name and budget; mean and, over several seeds, the sample standard deviation."""
        dense = next(row for row in self.rows if row["name"] == "dense")
        compared = [row for row in self.rows if row is not dense]
        budgets = sorted({row["budget"] for row in compared}, reverse=True)
        lines = [f"dense {dense['params']:,} parameters, top-1 {dense['top1']:.2f} on {dense['n_images']:,} images", ""]
        lines.append(f"{'ranks':<14} {'pairs':<18}" + "".join(f"{budget:>14}" for budget in budgets))
        for method, name in dict.fromkeys((row["method"], row["name"]) for row in compared):
            line = f"{method:<14} {name:<18}"
            for budget in budgets:
                cell = (method, name, budget)
                top1 = [row["top1"] for row in compared if (row["method"], row["name"], row["budget"]) == cell]
                spread = f" +- {stats.stdev(top1):.2f}" if len(top1) > 1 else ""
                line += f"{stats.fmean(top1):.2f}{spread}".rjust(14) if top1 else " " * 14
            lines.append(line)
        return "\n".join(line.rstrip() for line in lines)


def _check(grid: LowRankGrid, runs: Mapping[str, Run]) -> None:
    for name in grid.decompositions:
        if name != WR:
            decomposition(name)
    for name in grid.methods:
        if name not in (*ranks.METHODS, *ranks.MEASURED):
            raise UserError(f"grid.methods has {name!r}; {nearest(name, (*ranks.METHODS, *ranks.MEASURED))}")
    for name in grid.runs:
        if name not in runs:
            raise UserError(f"grid.runs has {name!r}, which is not a run; {nearest(name, runs)}")


def _untrained(ws: Workspace, dense: Artifact, seed: int, table: Table) -> Iterator[tuple[tuple, Row]]:
    """The cells of one calibration draw that have no row yet."""
    grid, config = ws.config.grid, ws.config
    cells = [(*cell, seed) for cell in itertools.product(grid.decompositions, grid.methods, grid.budgets)]
    if all(table.has(cell) for cell in cells):
        return
    ws = dataclasses.replace(ws, config=dataclasses.replace(config, seed=seed))
    layers = ranks.factorized(ws.spec.layers, config.plan.keep_dense, config.plan.pivot)
    batches, _ = ws.calibration(config.factorize.calibration_images)
    moments = statistics.moments(dense.model, dense.params, layers, batches, ws.mesh, gradients=True, seed=seed)
    params, spectrum = artifacts.host(dense.params), spectra.memo(config.cache_dir)
    planner: plan.Planner | None = None
    for method, budget in itertools.product(grid.methods, grid.budgets):
        missing = [name for name in grid.decompositions if not table.has((name, method, budget, seed))]
        if not missing:
            continue
        options = dataclasses.replace(config.plan, method=method, budget=budget)
        if method == "products":
            planner = planner or plan.Planner.of(ws, dense, layers, moments)
            planned = planner.plan(ws, options)
            for name in missing:
                small = _padded(planner, planned, name, params)
                yield (name, method, budget, seed), _row(ws, dense, small, planned)
            continue
        measured = method in ranks.MEASURED
        planned = ranks.make_plan(ws.spec.layers, options)
        chosen = plan.choose(ws, dense, layers, moments, options) if measured else {}
        planned = ranks.of_ranks(ws.spec.layers, chosen, options.pivot) if measured else planned
        kept = {path: layer.rank for path, layer in planned.items() if layer.rank}
        for name in missing:
            made = _pairs(ws, dense, kept, name, moments, spectrum)
            products = {
                path: {"kernel": layer.pop("u") @ layer.pop("v")} | layer for path, layer in copy.deepcopy(made).items()
            }
            yield (name, method, budget, seed), _row(ws, dense, trees.replace(params, products), planned)


def _padded(planner: plan.Planner, planned: plan_lib.Plan, name: str, params: Any) -> Any:
    """The dense model that computes what the planned one does, its pairs by the decomposition of that name."""
    changes: dict[str, Any] = {}
    for path, solved in planner.solved.items():
        layers = solved.layers(blocks.sizes_of(solved.block, planned), name)
        changes |= {f"{path}/{layer}": value for layer, value in solved.padded(layers).items()}
    return trees.replace(params, changes)


def _pairs(
    ws: Workspace,
    dense: Artifact,
    kept: dict[str, int],
    name: str,
    moments: Mapping[str, Moments],
    spectrum: factorize.Spectrum,
) -> dict[str, factorize.Layer]:
    """The pairs of one decomposition, or of WR as its training starts."""
    if name != WR:
        return factorize.pairs(ws, dense, kept, [name], spectrum, moments)[0][name]
    made, params = factorize.pairs(ws, dense, kept, ["svd"], spectrum, moments)[0]["svd"], artifacts.host(dense.params)
    rng = np.random.default_rng(0)  # WR draws nothing.
    for path, layer in made.items():
        layer["v"] = layer["v"] + reparam.wr(trees.get(params, path)["kernel"], kept[path], rng, spectrum).v
    return made


def _row(ws: Workspace, dense: Artifact, params: Any, planned: plan_lib.Plan) -> Row:
    """Evaluates dense-shaped parameters; the costs are those of the plan."""
    abstract = sharding.abstract_params(dense.model, ws.preprocess.size, ws.mesh)
    score = evaluate.accuracy(
        dense.model,
        sharding.put(params, abstract),
        ws.source("eval"),
        dense.preprocess,
        batch_size=ws.config.eval_batch_size,
        mesh=ws.mesh,
    )
    total = cost.total_cost(planned, ws.spec.layers)
    return {
        "params": total.params + other_params(dense.params, dense.plan),
        "linear_gflops": total.flops / 1e9,
        "top1": score.top1,
        "top5": score.top5,
        "n_images": score.images,
    }


def _trained(ws: Workspace, names: list[str], method: str, budget: float, seed: int) -> dict[str, Row]:
    """Runs of the ladder from one calibration draw, through the pipeline, in a work directory of their own."""
    config = dataclasses.replace(
        ws.config,
        weights=f"artifact:{ws.path('dense')}",
        model="",
        seed=seed,
        teacher=dataclasses.replace(ws.config.teacher, steps=0),
        plan=dataclasses.replace(ws.config.plan, method=method, budget=budget),
        runs={name: ws.config.runs[name] for name in names},
        factorize=dataclasses.replace(ws.config.factorize, baselines=()),
        quant=dataclasses.replace(ws.config.quant, methods={}, source=names[0]),
    )
    directory = ws.directory / "trained" / f"{method}-{budget:g}-{seed}-{zlib.crc32(' '.join(names).encode()):08x}"
    main.run(config, str(directory), ("teacher", "plan", "factorize", "distill", "merge", "evaluate"))
    rows = {row["name"]: row for row in results.read(directory)["rows"]}
    shutil.rmtree(directory / "checkpoints")  # A grid of them fills a disk.
    return {name: {key: rows[name][key] for key in COLUMNS} for name in names}
