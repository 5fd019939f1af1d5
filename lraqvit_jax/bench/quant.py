"""bench quant: quantizers x bits x models x calibration draws, evaluated on integers.

Every cell of the grid `config.quant_grid` becomes a row of WORKDIR/quant.json, at once: the same command goes on where
it stopped. Nothing else is kept of a model.
"""

import dataclasses
import itertools
import pathlib
import statistics as stats
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.bench.lowrank import Table
from lraqvit_jax.config import Config
from lraqvit_jax.devices import sharding
from lraqvit_jax.options import quant
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.quant import quantize
from lraqvit_jax.report import figures
from lraqvit_jax.run import opening, planning
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages import quantize as stage
from lraqvit_jax.stages import teacher
from lraqvit_jax.stages.evaluate import other_params
from lraqvit_jax.tasks import classification as evaluate
from lraqvit_jax.weights import artifacts

COLUMNS: tuple[tuple[str, str, Callable[[Mapping[str, Any], Mapping[str, Any]], float]], ...] = (
    ("difference", "+.2f", lambda row, whole: row["top1"] - whole["top1"]),
    ("KL of the logits", " .4f", lambda row, whole: row["kl"]),
    ("seconds to quantize", " .0f", lambda row, whole: row["seconds"]),
)
"""What the table shows of a row, and of that of the float model; how to write it."""
KEYS = ("source", "width", "name", "seed")
Row = dict[str, Any]


def run(config: Config, workdir: str) -> None:
    """Fills the grid, then prints a table for each model.

    Raises:
        UserError: bad input; a model that is not there, a name in the grid that is none.
    """
    ws = opening.open_workspace(config, workdir)
    grid = ws.config.quant_grid
    widths = {name: bits_of(name) for name in grid.widths}
    for name in grid.only:
        if name not in grid.methods:
            raise UserError(f"quant_grid.only has {name!r}, which is not a method; {nearest(name, grid.methods)}")
    methods = {name: grid.methods[name] for name in grid.only or grid.methods}
    for options in methods.values():
        quantize.check(options)
    teacher.run(ws)
    table = Table(ws.directory / "quant.json", KEYS)
    for source in grid.sources:
        exact = _load(ws, source)
        if not table.has((source, "float", "float", 0)):
            table.add((source, "float", "float", 0), _row(ws, exact, exact.params, exact.plan))
        logits: list[Any] = []
        for seed in grid.seeds:
            cells = [(source, width, name, seed) for width, name in itertools.product(widths, methods)]
            cells = [cell for cell in cells if not table.has(cell)]
            if not cells:
                continue
            logits = logits or _logits(ws, exact)
            drawn = dataclasses.replace(ws, config=dataclasses.replace(ws.config, seed=seed))
            calibrated = stage.calibrated(drawn, exact)
            plan = planning.quantized(ws.config, ws.spec, exact.plan)
            for cell in cells:
                options = dataclasses.replace(methods[cell[2]], **widths[cell[1]])
                started = time.perf_counter()
                result = stage.make(drawn, calibrated, plan, options, "-".join(map(str, (exact.name, *cell[1:]))))
                row = {"seconds": round(time.perf_counter() - started, 1), "errors": result.errors}
                row |= {"outliers": outliers(calibrated.seen)}
                table.add(cell, _row(ws, exact, result.params, result.plan, logits) | row)
                if result.alphas and seed == grid.seeds[0]:
                    _draw_surfaces(ws, cell, stage.surfaces(result.alphas, calibrated.seen))
    print(text(table.rows))
    print(f"\n{table.path}")
    for path in _draw_errors(ws, table.rows):
        print(path)


def bits_of(width: str) -> dict[str, Any]:
    """Fields of a `Quantizer` for "w4a8", 4 bits for kernels and 8 for activations; UserError for anything else."""
    weights, _, activations = width.removeprefix("w").partition("a")
    if width != f"w{weights}a{activations}" or not {weights, activations} <= {str(bits) for bits in quant.BITS}:
        raise UserError(f"quant_grid.widths has {width!r}; write w and a with 3 to 8 each, such as 'w4a8'.")
    return {"weight_bits": int(weights), "bits": int(activations)}


def outliers(seen: stage.Seen, count: int = 3) -> dict[str, float]:
    """The products whose inputs one scale for all tokens suits least: the largest max |x| of a token over the median
    token's, on the calibration images."""
    loudest = {
        f"{path}:{part}": np.abs(x).max(-1).reshape(-1) for path, parts in seen.items() for part, x in parts.items()
    }
    ratios = {key: float(one.max() / max(np.median(one), 1e-30)) for key, one in loudest.items() if len(one) > 1}
    return dict(sorted(ratios.items(), key=lambda item: -item[1])[:count])


def text(rows: list[Row]) -> str:
    """By method and width, mean and standard deviation over draws: top-1 against the float model, and the divergence
    of the logits from its, which tells apart what accuracies on few images cannot. Megabytes."""
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        of_source = [row for row in rows if row["source"] == source]
        whole = next(row for row in of_source if row["width"] == "float")
        widths = list(dict.fromkeys(row["width"] for row in of_source if row["width"] != "float"))
        lines += [f"{source}: top-1 {whole['top1']:.2f} on {whole['n_images']:,} images, {whole['size_mb']:.2f} MB", ""]
        for title, style, of in COLUMNS:
            lines.append(f"{title:<28}" + "".join(f"{width:>18}" for width in widths))
            for name in dict.fromkeys(row["name"] for row in of_source if row["width"] != "float"):
                line = f"{name:<28}"
                for width in widths:
                    values = [of(row, whole) for row in of_source if (row["width"], row["name"]) == (width, name)]
                    spread = f" +- {stats.stdev(values):{style[1:]}}" if len(values) > 1 else ""
                    line += f"{stats.fmean(values):{style}}{spread}".rjust(18) if values else " " * 18
                lines.append(line.rstrip())
            lines.append("")
        sizes = {width: [row["size_mb"] for row in of_source if row["width"] == width] for width in widths}
        lines.append(f"{'MB':<28}" + "".join(f"{max(sizes[width]):>18.3f}" for width in widths))
        loud: dict[str, float] = next((row["outliers"] for row in of_source if "outliers" in row), {})
        named = ", ".join(f"{key} {ratio:.1f}" for key, ratio in loud.items())
        lines += ["", f"loudest token over the median one: {named}", ""]
    return "\n".join(lines).rstrip()


def _draw_surfaces(ws: Workspace, cell: tuple, surfaces: Mapping[str, Any]) -> None:
    """The paper's Fig. 3: the loudest of the scaled products before and after, activations-SOURCE-WIDTH-NAME.svg."""
    worst = max((key for key in surfaces if key.endswith(":before")), key=lambda key: figures.loudest(surfaces[key]))
    key = worst.removesuffix(":before")
    drawn = figures.surfaces(surfaces[worst], surfaces[f"{key}:after"], f"{cell[0]}, {key}")
    files.write_atomically(ws.directory / f"activations-{_file_name(*cell[:3])}.svg", drawn)


def _draw_errors(ws: Workspace, rows: list[Row]) -> list[pathlib.Path]:
    """The paper's Fig. 5: the error of every product by method, errors-SOURCE-WIDTH.svg for each model and width."""
    paths = []
    for source, width in dict.fromkeys((row["source"], row["width"]) for row in rows if "errors" in row):
        cells = [row for row in rows if (row["source"], row["width"]) == (source, width)]
        first = {row["name"]: row["errors"] for row in reversed(cells)}
        paths.append(ws.directory / f"errors-{_file_name(source, width)}.svg")
        files.write_atomically(paths[-1], figures.errors(dict(reversed(first.items()))))
    return paths


def _file_name(source: str, *rest: str) -> str:
    return "-".join((pathlib.Path(source).name, *rest))


def _load(ws: Workspace, source: str) -> artifacts.Artifact:
    """An artefact by its name here, or by its path; float, of the same model."""
    path = ws.path(source) if ws.has(source) else files.locate(source)
    exact = artifacts.load_artifact(path, ws.mesh)
    if any(layer.form not in ("dense", "low_rank", "pivoted") for layer in exact.plan.values()):
        raise UserError(f"{path} is not a finished float model; name one that `merge` wrote, or dense.")
    if exact.meta["model"] != ws.model or exact.meta["num_classes"] != ws.num_classes:
        raise UserError(f"{path} is a {exact.meta['model']}, and this work directory is for a {ws.model}.")
    return exact


def _logits(ws: Workspace, exact: artifacts.Artifact) -> list[Any]:
    size = ws.config.eval_batch_size
    return evaluate.logits(
        exact.model, exact.params, ws.source("eval"), exact.preprocess, batch_size=size, mesh=ws.mesh
    )


def _row(ws: Workspace, exact: artifacts.Artifact, params: Any, plan: plan_lib.Plan, logits: Sequence[Any] = ()) -> Row:
    model = models.create(ws.model, num_classes=ws.num_classes, image_size=exact.preprocess.size, plan=plan)
    abstract = sharding.abstract_params(model, exact.preprocess.size, ws.mesh)
    score = evaluate.accuracy(
        model,
        sharding.put(params, abstract),
        ws.source("eval"),
        exact.preprocess,
        batch_size=ws.config.eval_batch_size,
        mesh=ws.mesh,
        other=logits,
    )
    cost = total_cost(plan, ws.spec.layers)
    rest = other_params(exact.params, exact.plan)
    return {
        "params": cost.params + rest,
        "linear_gflops": cost.flops / 1e9,
        "size_mb": (cost.bytes + 4 * rest) / 1e6,
        "top1": score.top1,
        "top5": score.top5,
        "n_images": score.images,
    } | ({"kl": score.kl, "agreement": score.agreement} if logits else {})
