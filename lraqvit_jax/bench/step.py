"""bench step: what a distillation step costs, against its parts and against the arithmetic it cannot avoid.

The parts (teacher forward, student forward and backward, update) are compiled on their own and timed in turn with the
whole step, so that other load on the machine falls on all of them. A second table times the forward and backward pass
of a layer as a plain pair, as the reparam form computes it (branch added to the factors, two products), and as Eq. 6
reads (four products).
"""

import json
import statistics as stats
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lraqvit_jax.base import files
from lraqvit_jax.config import Config
from lraqvit_jax.devices import sharding
from lraqvit_jax.forms import Params, pair
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.options.training import Recipe
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.run import opening
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.stages import estimate
from lraqvit_jax.stages.estimate import Training
from lraqvit_jax.training import loop, step, terms
from lraqvit_jax.training.objective import of_run

ROUNDS = 15


def run(config: Config, workdir: str) -> None:
    """Times the step of the run `quant.source`, prints both tables and writes WORKDIR/step.json."""
    ws = opening.open_workspace(config, workdir, write=False)
    with sharding.use(ws.mesh):
        parts, forms = _step(ws), _forms(ws)
    print("\n".join(f"{name:<28} {value:>10.4g}" for name, value in parts.items()) + "\n")
    print(f"{'layer, forward + backward':<28} {'pair, ms':>10} {'reparam':>10} {'four':>10}")
    for layer, row in forms.items():
        print(f"{layer:<28} {row['pair_ms']:>10.2f} {row['reparam']:>9.2f}x {row['four_products']:>9.2f}x")
    path = ws.directory / "step.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(
        path,
        json.dumps({"schema": 1, "device": jax.devices()[0].device_kind, "step": parts, "forms": forms}, indent=1)
        + "\n",
    )
    print(f"\n{path}")


class _Known:
    """A teacher whose answer is known: `frozen` is what it returns."""

    def apply(self, variables: Any, images: Any, **options: Any) -> Any:
        del images, options
        return variables["params"]


def _step(ws: Workspace) -> dict[str, float]:
    """Milliseconds of the parts and the whole, their ratio, and the floor."""
    config = ws.config
    options, dtype, size = config.runs[config.quant.source], config.dtype, ws.preprocess.size
    student = ws.create(plan_lib.low_rank(ws.plan, reparam.form(options.branch)), dtype=dtype)
    teacher = ws.create(plan_lib.dense(ws.spec.layers), dtype=dtype)
    abstract = sharding.abstract_params(student, size, ws.mesh)
    recipe = Recipe.of(config.optimizer, 10_000)
    tx = loop.optimizer(recipe)
    state_of = loop.abstract_state(abstract, tx, ws.mesh)
    frozen = sharding.init_params(teacher, jax.random.key(0), size, sharding.abstract_params(teacher, size, ws.mesh))
    state = loop.init_state(sharding.init_params(student, jax.random.key(1), size, abstract), tx, state_of)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((config.batch_size, size, size, 3), np.float32)
    labels = rng.integers(0, ws.num_classes, config.batch_size).astype(np.int32)
    rows = sharding.rows_of_process(ws.mesh, config.batch_size)
    batch = sharding.put_batch({"image": images[rows], "label": labels[rows]}, ws.mesh)

    whole: Any = loop.make_step(step.distillation(student, teacher, options.distillation), tx, state_of, ws.mesh)
    collect = ["attention"] if "attention" in terms.needs(options.distillation) else False
    answer = jax.jit(lambda params, x: teacher.apply({"params": params}, x, return_features=True, mutable=collect))
    fixed_teacher: Any = _Known()
    student_loss = step.distillation(student, fixed_teacher, options.distillation)
    gradient = jax.jit(jax.grad(student_loss, has_aux=True))

    def update(state: Any, gradients: Any) -> Any:
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"step": state["step"] + 1, "params": params, "opt_state": opt_state}

    update_of = jax.jit(update, donate_argnums=0)
    training = Training("step", of_run(options, student, teacher), recipe, size, True)
    flops = estimate.flops(training, config.batch_size, "none")
    times: dict[str, list[float]] = {"teacher_ms": [], "student_ms": [], "update_ms": [], "step_ms": []}
    for _ in range(ROUNDS + 2):
        targets = timed(times["teacher_ms"], answer, frozen, batch["image"])
        gradients = timed(times["student_ms"], gradient, state["params"], targets, batch)[0]
        state = timed(times["update_ms"], update_of, state, gradients)
        state = timed(times["step_ms"], whole, state, frozen, batch)[0]
    figures = {name: stats.median(values[2:]) for name, values in times.items()}
    figures["step_over_parts"] = figures["step_ms"] / (
        figures["teacher_ms"] + figures["student_ms"] + figures["update_ms"]
    )
    figures["gflops_a_step"] = flops / 1e9
    figures["peak_gflops_a_second"] = _peak(dtype)
    figures["floor_ms"] = 1e3 * figures["gflops_a_step"] / figures["peak_gflops_a_second"]
    figures["step_over_floor"] = figures["step_ms"] / figures["floor_ms"]
    figures["share_of_peak"] = figures["floor_ms"] / figures["step_ms"]
    return figures


def timed(times: list[float], function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls, waits, and notes the milliseconds."""
    started = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    times.append(1e3 * (time.perf_counter() - started))
    return result


def _peak(dtype: str) -> float:
    """GFLOP/s of a square product in the dtype of the step, the fastest of five: what the device gives here and now."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(jnp.matmul)
    times: list[float] = []
    for _ in range(6):
        timed(times, product, x, x)
    return 2 * side**3 / min(times[1:]) / 1e6


def _four_products(params: Params, x: jax.Array) -> jax.Array:
    """Eq. 6 as it reads: every factor meets every other."""
    first, second = x @ params["u"], x @ params["du"]
    return first @ params["v"] + first @ params["dv"] + second @ params["v"] + second @ params["dv"]


def _forms(ws: Workspace) -> dict[str, dict[str, float]]:
    """Milliseconds of a pair, and what the other two forms cost relative to it, for each shape of layer."""
    shapes: dict[tuple[int, ...], str] = {}
    for info in ws.spec.layers:
        if rank := ws.plan[info.path].rank:
            shapes.setdefault((info.features_in, info.features_out, rank, info.tokens), info.path)
    functions: Any = {"pair": pair.low_rank, "reparam": pair.reparam, "four_products": _four_products}
    rng, rows = np.random.default_rng(0), {}
    for (m, n, rank, tokens), path in shapes.items():
        draw = {"u": (m, rank), "v": (rank, n), "du": (m, rank), "dv": (rank, n)}
        params = {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in draw.items()}
        x = jnp.asarray(rng.standard_normal((ws.config.batch_size * tokens, m), np.float32))
        calls = {name: _backward(function) for name, function in functions.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS + 2):
            for name, call in calls.items():
                timed(times[name], call, params if name != "pair" else {key: params[key] for key in "uv"}, x)
        ms = {name: stats.median(values[2:]) for name, values in times.items()}
        rows[path] = {"pair_ms": ms["pair"]} | {name: ms[name] / ms["pair"] for name in ("reparam", "four_products")}
    return rows


def _backward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles the output and the gradients of params and x, as a training step computes them."""

    def call(params: Any, x: jax.Array) -> Any:
        y, pull = jax.vjp(function, params, x)
        return y, pull(jnp.ones_like(y))

    return jax.jit(call)
