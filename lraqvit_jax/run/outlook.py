"""What a run will take and leave, said before it: FLOPs and seconds by stage, and files.

Seconds follow from FLOPs, and from how fast this machine multiplies matrices of the model's size; and from how long its
host takes to round a kernel by GPTQ, which no accelerator does for it. They tell minutes from hours, no more: what
decomposes, compiles, loads and writes is not in them.
"""

import math
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lraqvit_jax import config as config_lib
from lraqvit_jax.data.sources import Source
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.cost import total_cost
from lraqvit_jax.quant.rounding import gptq
from lraqvit_jax.run.workspace import Workspace

BACKWARD = 3
"""Times the forward pass that a step takes: the gradient by the inputs and that by the kernels are one each."""
SHARE = 0.5
"""Of the rate of one large product that a whole model reaches."""
CHOOSING = 8
"""Times the forward and backward passes of the calibration images that choosing sizes by `products` takes."""
SIDE = 768
"""Rows and columns of the kernel whose rounding is timed."""


def work(ws: Workspace, sources: Mapping[str, Source]) -> dict[str, float]:
    """FLOPs of each stage that computes on images.

    Args:
        ws: what is to be done.
        sources: the data by role; evaluation is left out where there is none to tell its number of images.
    """
    config = ws.config
    dense = total_cost(plan_lib.dense(ws.spec.layers), ws.spec.layers).flops
    small = total_cost(ws.plan, ws.spec.layers).flops
    calibration = config.factorize.calibration_images * BACKWARD * dense
    choosing = CHOOSING if config.plan.method == "products" else 2
    searched = _searched(ws, sources, small) if config.goal.is_set and ws.provisional else 0.0
    size, dense_integers = ws.preprocess.size, config_lib.DENSE_INTEGERS in config_lib.rows(config)
    of_stage = {
        "teacher": config.teacher.steps * config.batch_size * BACKWARD * dense,
        "plan": ws.provisional * (calibration * choosing + _rounded(ws, dense)) + searched,
        "factorize": calibration,
        "distill": sum(
            _steps(ws, run.steps, sources)
            * config.batch_size
            * (dense + BACKWARD * small)
            * ((run.image_size or size) / size) ** 2
            for run in config.runs.values()
        ),
        "quantize": config.quant.calibration_images * (len(config.quant.methods) * small + dense_integers * dense),
    }
    if "eval" in sources:
        floats = 1 + len(config.factorize.rows) + len(config.runs)
        rows = dense * (1 + 2 * dense_integers) + small * (floats - 1 + 2 * len(config.quant.methods))
        of_stage["evaluate"] = len(sources["eval"]) * rows
    return of_stage


def speed(ws: Workspace) -> float:
    """FLOPs a second of a whole model on the devices of the mesh."""
    return SHARE * rate(ws) * max(1, ws.mesh.size(tuple(ws.mesh.shape)))


def _rounded(ws: Workspace, dense: int) -> float:
    """FLOPs of measuring what rounding each kernel loses: from its block on, which is half of the model on average."""
    kernels = sum(count for _, count in _kernels(ws))
    return max(0, _widths(ws) - 1) * kernels * ws.config.plan.measured_images * dense / 2


def _kernels(ws: Workspace) -> list[tuple[plan_lib.LinearInfo, int]]:
    """The dense layers, and how many kernels each has once it is planned: query, key and value are one each."""
    return [(info, 3 if info.path.endswith("/qkv") else 1) for info in ws.spec.layers]


def _widths(ws: Workspace) -> int:
    """Of how many kinds of integers each kernel may be."""
    return len(plan_lib.Integers.all(ws.config.plan.widths, ws.config.plan.groups))


def rounding(ws: Workspace) -> dict[str, float]:
    """Seconds of the host by stage to round kernels by GPTQ: those of each model that is made, and each in all integers
    that it may have."""
    config = ws.config
    made = sum(method.rounding != "nearest" for method in config.quant.methods.values())
    if not made:
        return {}
    of_rows, of_entries = _gptq()
    factors = sum(count * of_rows * info.features_in**3 for info, count in _kernels(ws))
    entries = sum(of_entries * info.features_in * info.features_out for info in ws.spec.layers)
    widths = _widths(ws)
    searched = _models(ws) * (factors + entries) if config.goal.is_set else 0.0
    measured = factors + widths * entries if widths > 1 else 0.0
    return {"plan": ws.provisional * (searched + measured), "quantize": made * (factors + entries)}


def _gptq() -> tuple[float, float]:
    """Seconds of GPTQ here, of a kernel (m, n): how many times m**3, for the factor of what it reads, and how many
    times m n."""
    kernel, rows = np.random.default_rng(0).standard_normal((2, SIDE, SIDE))
    layer = plan_lib.LayerPlan("quantized", bits=8, weight_bits=5)
    for _ in range(2):  # the first time compiles
        began = time.perf_counter()
        factor = gptq.Factor.of(rows.T @ rows)
        factored = time.perf_counter()
        gptq.solve(kernel, factor, layer)
        solved = time.perf_counter()
    return (factored - began) / SIDE**3, (solved - factored) / SIDE**2


def _models(ws: Workspace) -> int:
    """How many models a search makes, at most about."""
    goal = ws.config.goal
    tried = goal.accuracy * math.ceil(math.log2(max(2.0, (1 - goal.lowest) / goal.resolution)))
    return 1 + tried + len(goal.families) * len(goal.budgets)


def _searched(ws: Workspace, sources: Mapping[str, Source], small: int) -> float:
    """FLOPs of making and asking the models of a search, and of distilling some."""
    config, goal = ws.config, ws.config.goal
    images = len(sources["eval"]) * (1 - goal.held_out) if "eval" in sources else 0
    asked = images * 2 + config.quant.calibration_images + config.factorize.calibration_images
    distilled = goal.trained * config.steps * config.batch_size * (BACKWARD + 1) if goal.accuracy else 0
    return (_models(ws) * asked + distilled) * small


def _steps(ws: Workspace, steps: int, sources: Mapping[str, Source]) -> int:
    if ws.config.epochs and "train" in sources:
        return max(1, round(ws.config.epochs * len(sources["train"]) / ws.config.batch_size))
    return steps or ws.config.steps


def rate(ws: Workspace) -> float:
    """FLOPs a second of the model's largest product on one device, as measured here."""
    info = max(
        (info for info in ws.spec.layers if info.compressible), key=lambda info: info.features_in * info.features_out
    )
    rows = min(ws.config.batch_size * info.tokens, 4096)
    inputs = jnp.ones((rows, info.features_in), ws.config.dtype)
    kernel = jnp.ones((info.features_in, info.features_out), ws.config.dtype)
    product = jax.jit(jnp.matmul)
    product(inputs, kernel).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        product(inputs, kernel).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2 * rows * info.features_in * info.features_out / min(times)


def sentences(ws: Workspace, sources: Mapping[str, Source]) -> list[str]:
    """What is said of it: time, what it does not hold, files."""
    of_stage, fast, rounds = work(ws, sources), speed(ws), rounding(ws)
    by_stage = {stage: flops / fast + rounds.get(stage, 0.0) for stage, flops in of_stage.items()}
    by_stage = {stage: took for stage, took in by_stage.items() if took >= 1}
    parts = ", ".join(f"{stage} {_time(took)}" for stage, took in by_stage.items())
    whole = f"{_time(sum(by_stage.values()))} ({parts})" if parts else "seconds"
    goal = ws.config.goal
    if goal.is_set and ws.provisional:
        what = "budgets until the smallest that keeps within the goal" if goal.accuracy else "the budget of the goal"
        lines = [f"The stage plan makes and asks models of {what}, and {_others(ws)} to compare with."]
    else:
        lines = []
    lines += [
        f"Estimated time on this machine: {whole}, for {sum(of_stage.values()):.1e} FLOPs at {fast:.1e} a second"
        + (f", {_time(sum(rounds.values()))} in which the host rounds kernels" if rounds else "")
        + ", and what decompositions, compiling and exports take."
    ]
    if "eval" not in sources:
        lines.append("Without the evaluation, whose data are not here yet.")
    exported = ", ".join(f"export/{name}.*" for name in ws.config.export.artifacts)
    folder = ", ".join(f"checkpoints/{name}" for name in config_lib.rows(ws.config))
    shared = f", hub/ for {ws.config.hub.push}" * bool(ws.config.hub.push)
    lines.append(f"Files in {ws.directory}: plan.json, {folder}, results.json, {exported}, report.html{shared}.")
    return lines


def _others(ws: Workspace) -> str:
    count = len(ws.config.goal.families) * len(ws.config.goal.budgets)
    return f"{count} others" if count else "none"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
