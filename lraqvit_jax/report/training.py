"""The part of the page on training: curves of every run, and the block errors of those that were distilled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lraqvit_jax.report import panels
from lraqvit_jax.report.blocks import Grid, Section, figure, legend


def training(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Curves of every run, and the block errors of those that were distilled."""
    head = "training", "Training"
    if not rows:
        return Section(*head, "No training was logged. The stages teacher and distill write it.")
    by_run = {run: [row for row in rows if row["run"] == run] for run in dict.fromkeys(row["run"] for row in rows)}
    teacher = {run: logged for run, logged in by_run.items() if run == "teacher"}
    others = {run: logged for run, logged in by_run.items() if run != "teacher"}
    grids = [_curves("teacher", "The teacher", "The dense model learns from labels.", teacher)] if teacher else []
    text = "Each starts from the teacher, and is trained as its row in the table of results says."
    grids += [_curves("run", "Compressed models", text, others)] if others else []
    distilled = {run: logged for run, logged in by_run.items() if "kd_0" in logged[0]}
    grids += [_distillation(distilled)] if distilled else []
    return Section(*head, "How the models were trained, step by step.", grids)


CURVES = {
    "loss": ("training loss", True, 1, "Loss. Each run has its own objective: compare its fall, not its height."),
    "accuracy": ("accuracy on the batch, %", False, 100, "Accuracy on the batch it trains on."),
}
"""What is drawn of every run: label, whether on a logarithmic axis, unit, caption."""


def _curves(name: str, heading: str, text: str, by_run: Mapping[str, Sequence[Mapping[str, Any]]]) -> Grid:
    """Loss and accuracy over the steps of some runs."""
    drawn = []
    labelled = any(value > 0 for logged in by_run.values() for value in _column(logged, "accuracy"))
    quantities = dict(list(CURVES.items())[: 1 + labelled])  # Without labels no answer is right.
    for quantity, (label, log, unit, caption) in quantities.items():
        lines = {
            run: ([row["step"] for row in logged], [unit * value for value in _column(logged, quantity)])
            for run, logged in by_run.items()
        }
        ends = (f"{run} from {values[0]:.3g} to {values[-1]:.3g}" for run, (_, values) in lines.items())
        svg, title = panels.curve(f"{name}{quantity}", lines, label, log), f"{heading}: {label} over the steps"
        drawn.append(figure(svg, f"{name}{quantity}", title, "; ".join(ends), caption))
    columns = ("run", "steps", "loss, first", "loss, last", *["batch accuracy, last, %"][:labelled])
    table = [
        (
            run,
            f"{logged[-1]['step']:,}",
            *(f"{_column(logged, 'loss')[at]:.4g}" for at in (0, -1)),
            *[f"{100 * _column(logged, 'accuracy')[-1]:.1f}"][:labelled],
        )
        for run, logged in by_run.items()
    ]
    keys = legend(list(by_run)) if len(by_run) > 1 else ()
    return Grid(heading, text, drawn, keys, columns=columns, rows=table)


def _distillation(by_run: Mapping[str, Sequence[Mapping[str, Any]]]) -> Grid:
    """Block errors of the runs that have them."""
    drawn, table = [], []
    for number, (run, logged) in enumerate(by_run.items()):
        blocks = sum(name.startswith("kd_") for name in logged[0])
        errors = np.array([_column(logged, f"kd_{block}") for block in range(blocks)]).T
        first, last = errors[0], errors[-1]
        start = f"From {np.nanmean(first):.3g} to " if len(errors) > 1 else ""
        words = f"{start}{np.nanmean(last):.3g} on average over {blocks} blocks."
        drawn.append(
            figure(
                panels.block_errors(f"blocks{number}", [row["step"] for row in logged], errors),
                f"blocks{number}",
                f"Distillation error of each block, {run}",
                words,
                f"{run}. {words}",
            )
        )
        table += [(run, str(block), f"{first[block]:.4g}", f"{last[block]:.4g}") for block in range(blocks)]
    text = (
        "How far the output of each encoder block is from the teacher's (mean squared error). Errors add up from block "
        "to block; distillation pulls all of them down together."
    )
    columns = ("run", "block", "error, first", "error, last")
    return Grid("Distillation, block by block", text, drawn, ramp=True, columns=columns, rows=table)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [_number(row.get(name)) for row in rows]
