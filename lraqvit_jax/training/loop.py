"""The one training loop: optimizer, jitted step, checkpoints, metrics, and what to do when the loss is not finite."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import Preempted, UserError
from lraqvit_jax.devices import sharding
from lraqvit_jax.devices.sharding import Mesh
from lraqvit_jax.options.training import Recipe
from lraqvit_jax.run import preemption
from lraqvit_jax.run.checkpoint import TrainCheckpoints
from lraqvit_jax.run.metrics import MetricsLog

State = dict[str, Any]
LossFn = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


def schedule(recipe: Recipe) -> optax.Schedule:
    """Learning rate as a function of the step."""
    warmup = min(recipe.warmup, max(0, recipe.steps - 1))
    return optax.warmup_cosine_decay_schedule(
        recipe.learning_rate / max(1, warmup) if warmup else recipe.learning_rate,
        recipe.learning_rate,
        warmup,
        max(recipe.steps, warmup + 1),
    )


def _relative(ratio: float, chosen: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiplies the update of each chosen parameter by `ratio` and by its own size."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda step, leaf: ratio * step * jnp.abs(leaf), updates, params), state

    return optax.masked(optax.GradientTransformation(lambda _: optax.EmptyState(), update), chosen)


def optimizer(
    recipe: Recipe,
    frozen: Callable[[Any], Any] | None = None,
    relative: tuple[float, Callable[[Any], Any]] | None = None,
) -> optax.GradientTransformation:
    """Builds the optimizer.

    Args:
        recipe: its constants.
        frozen: maps a parameter tree to a tree of bools; True stays as it is.
        relative: `(ratio, chosen)`; where `chosen` of the parameter tree is True, a step is `ratio` times the learning
            rate times the parameter's own size.
    """
    keep = optax.masked(optax.set_to_zero(), frozen) if frozen else optax.identity()
    clip = optax.clip_by_global_norm(recipe.grad_clip) if recipe.grad_clip else optax.identity()
    adamw = optax.adamw(
        schedule(recipe),
        b2=recipe.beta2,
        weight_decay=recipe.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim == 2, params),
    )
    scaled = _relative(*relative) if relative else optax.identity()
    return optax.chain(keep, clip, adamw, scaled, keep)


def abstract_state(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """Shapes and shardings of the whole training state, from those of the parameters."""
    whole = sharding.replicated(mesh)

    def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    opt_state = optax.tree_utils.tree_map_params(
        tx,
        lambda leaf, param: place(leaf, param.sharding),
        jax.eval_shape(tx.init, params),
        params,
        transform_non_params=lambda leaf: place(leaf, whole),
    )
    return {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), "params": params, "opt_state": opt_state}


def init_state(params: Any, tx: optax.GradientTransformation, abstract: State) -> State:
    """The state before the first step. `params` are consumed."""
    opt_state = jax.jit(tx.init, out_shardings=sharding.shardings(abstract["opt_state"]))(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), abstract["step"].sharding)
    return {"step": step, "params": params, "opt_state": opt_state}


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    abstract: State,
    mesh: Mesh,
    micro_batches: int = 1,
    shared: Callable[[Any, Any], dict[str, jax.Array]] = lambda frozen, batches: {},
) -> Callable[..., Any]:
    """Compiles one update: `step(state, frozen, batch) -> (state, metrics)`, the state donated.

    Where the loss or a gradient is not finite, parameters and optimizer stay as they were.

    Args:
        loss_fn: `(params, frozen, batch) -> (loss, metrics)`.
        tx: optimizer.
        abstract: shapes and shardings of the state.
        mesh: where it runs.
        micro_batches: parts of the batch that go through `loss_fn` one after another; loss, metrics and gradient are
            their means.
        shared: `(frozen, batches) -> entries` that each micro-batch gets besides its own, from all of them with
            micro-batches as the first axis: what it takes for these means to be those of the whole batch.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulated(params: Any, frozen: Any, batch: Any) -> Any:
        """What `gradient` gives for the whole batch, in the memory of one micro-batch."""
        parts = sharding.micro_batches(batch, micro_batches, mesh)
        entries = shared(frozen, parts)

        def of_part(part: Any) -> Any:
            (loss, metrics), grads = gradient(params, frozen, {**part, **entries})
            return (loss, metrics), jax.lax.with_sharding_constraint(grads, sharding.shardings(abstract["params"]))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of_part(part)), None

        shapes = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
        total, _ = jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), parts)
        return jax.tree.map(lambda leaf: leaf / micro_batches, total)

    def step(state: State, frozen: Any, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        whole = gradient if micro_batches == 1 else accumulated
        (loss, metrics), grads = whole(state["params"], frozen, batch)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        updated = {"params": params, "opt_state": opt_state}
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, {key: state[key] for key in updated})
        return {"step": state["step"] + 1, **kept}, metrics

    out = (sharding.shardings(abstract), sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out)


PROFILED = 3
"""Steps in a trace of the profiler."""


class _Trace:
    """A trace of PROFILED steps from `first` on, in `folder`/`name`; nothing where there is no folder.

    The profiler is started with the first of them and stopped when the last is done, or the run ends.
    """

    def __init__(self, folder: str, name: str, first: int) -> None:
        self._folder = f"{folder}/{name}" if folder else ""
        self._first, self._runs = first, False

    def at(self, step: int) -> None:
        """Before every step."""
        if self._folder and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._runs = True
        elif step == self._first + PROFILED:
            self.close()

    def close(self) -> None:
        if self._runs:
            jax.effects_barrier()
            jax.profiler.stop_trace()
            console.say(f"The profiler's trace is in {self._folder}; see it with xprof or Perfetto.")
        self._runs = False


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run of the loop is told.

    Attributes:
        name: of the run.
        steps: the last step.
        batch_size: of all processes together.
        mesh: where it runs.
        checkpoints: of the run.
        metrics_path: metrics.jsonl.
        log_every: steps between two lines of it.
        learning_rate: by step, for the log.
        blame: `(step, params, batch) -> str`, where a number that is not finite comes from.
        tensorboard: whether to write event files too.
        profile: a folder for a trace of JAX's profiler, of PROFILED steps after the first two; "" for none.
    """

    name: str
    steps: int
    batch_size: int
    mesh: Mesh
    checkpoints: TrainCheckpoints
    metrics_path: pathlib.Path
    log_every: int
    learning_rate: optax.Schedule
    blame: Callable[[int, Any, Any], str]
    tensorboard: bool = False
    profile: str = ""


def fit(job: Job, state: State, step_fn: Callable[..., Any], frozen: Any, batches: grain.DatasetIterator) -> State:
    """Runs to `job.steps`, from wherever the state is.

    Args:
        job: what to do.
        state: where to start.
        step_fn: of `make_step`.
        frozen: parameters of the teacher.
        batches: of this process.

    Raises:
        UserError: the loss or the gradient is not finite. The newest checkpoint is from before it.
        Preempted: after saving, where the run is to stop.
    """
    start = int(state["step"])
    if start >= job.steps:
        return state
    pending = None
    with (
        contextlib.closing(_Watch(job, start)) as watch,
        contextlib.closing(_Trace(job.profile, job.name, start + 3)) as trace,
        preemption.deferred(),
    ):
        for step in range(start + 1, job.steps + 1):
            trace.at(step)
            batch = sharding.put_batch(next(batches), job.mesh)
            state, metrics = step_fn(state, frozen, batch)
            if pending is not None:
                watch.settle(*pending, state)  # of the step before, while this one runs
            pending = (step, metrics, batch)
            stop = preemption.reached()
            if step == job.steps or job.checkpoints.due(step) or stop:
                watch.settle(*pending, state)
                pending = None
                job.checkpoints.save(step, state, batches)
            if stop:
                job.checkpoints.close()
                raise Preempted(
                    f"Stopped by SIGTERM at step {step} of {job.name}, which is saved; run the same command again to "
                    "go on."
                )
    return state


class _Watch:
    """Waits for steps, checks and logs them, moves the bar."""

    def __init__(self, job: Job, start: int) -> None:
        self._job, self._clock, self._since = job, time.perf_counter(), start
        self._log = MetricsLog(job.metrics_path, job.name, start, job.tensorboard)
        self._bar = console.bar(total=job.steps, initial=start, desc=job.name, unit="step")

    def settle(self, step: int, metrics: Any, batch: Any, state: State) -> None:
        """Waits for the metrics of a step; UserError where they are not finite, `state` being what came of it."""
        job, values = self._job, {key: float(value) for key, value in metrics.items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
            job.checkpoints.close()
            place = job.blame(step, state["params"], batch)
            raise UserError(_diverged(job.name, values, place, job.checkpoints.latest()))
        if step % job.log_every == 0 or step == job.steps:
            self._write(step, values)
        self._bar.update(1)

    def _write(self, step: int, values: dict[str, float]) -> None:
        speed = (step - self._since) * self._job.batch_size / max(1e-9, time.perf_counter() - self._clock)
        self._clock, self._since = time.perf_counter(), step
        learning_rate = float(self._job.learning_rate(step - 1))
        values |= {"learning_rate": learning_rate, "images_per_second": round(speed, 1)}
        self._log.write(step, values)
        text = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        console.detail(f"{self._job.name} step {step}: {text}")
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed:.0f} images/s", refresh=False)

    def close(self) -> None:
        self._bar.close()
        self._log.close()


def _diverged(name: str, values: dict[str, float], blamed: str, kept: int | None) -> str:
    last = f"step {kept}" if kept else "the start"
    return (
        f"The loss of {name} is not finite at {blamed} (loss {values['loss']}, gradient norm {values['grad_norm']}); "
        f"the last good checkpoint is {last}: lower the learning rate or set grad_clip, in a new work directory."
    )
