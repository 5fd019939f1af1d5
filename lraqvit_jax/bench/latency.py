"""bench latency: models as their exported files run, in several runtimes, side by side.

`latency.models` are artefacts, by their name in the work directory or their path, or "random:FORM": the shapes and
ranks of the configuration, or with "random:FORM@PATH" those of another plan.json, and random weights, which take the
same time. A model is written as each runtime reads it: ONNX for ONNX Runtime and OpenVINO, StableHLO for JAX,
safetensors for PyTorch.

Each model of each runtime is loaded by a process of its own, which has as many cores as threads. In every round each is
called once, so that other load on the machine falls on all; ratios are taken within a round. What is not installed is
left out, and so is, with one line, what a runtime cannot run. All are in memory at once; where that is short, name
fewer.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lraqvit_jax import models, runtimes
from lraqvit_jax.base import files
from lraqvit_jax.base.console import progress
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.bench import _random
from lraqvit_jax.bench._process import Process, RuntimeFailedError
from lraqvit_jax.bench._worker import give_back
from lraqvit_jax.config import Config
from lraqvit_jax.export import litert, onnx, safetensors, stablehlo
from lraqvit_jax.options.bench import LatencyOptions
from lraqvit_jax.report import figures
from lraqvit_jax.run import opening
from lraqvit_jax.run.workspace import Workspace

WARMUP = 2
"""Rounds that do not count."""
Key = tuple[str, str]
"""Runtime and model."""
Row = dict[str, Any]


def run(config: Config, workdir: str) -> None:
    """Writes WORKDIR/latency-runtimes.json and .svg, and prints tables.

    Raises:
        UserError: a runtime, a form or an artefact that there is not; nothing is installed that could run.
    """
    ws = opening.open_workspace(config, workdir, write=False)
    options = ws.config.latency
    settings, names = _settings(options), _installed(options)
    _random.check(ws, options.models)
    ws.directory.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=ws.directory) as folder:
        exported = _write(ws, pathlib.Path(folder), names)
        for threads, batch in settings:
            timings = _measure(exported, names, threads, batch, options.rounds)
            timings = compare(timings, options.models[0], names[0])
            rows += [{**row, "threads": threads, "batch": batch} for row in timings]
            print(f"\n{text(rows, threads, batch, (names[0], options.models[0]))}\n", flush=True)
    path = ws.directory / "latency-runtimes.json"
    result = {"schema": 1, "model": ws.model, "reference": {"model": options.models[0], "runtime": names[0]}}
    result |= {"rounds": options.rounds, "machine": machine(), "versions": versions(names), "rows": rows}
    files.write_atomically(path, json.dumps(result, indent=1) + "\n")
    print(path)
    if rows:
        files.write_atomically(path.with_suffix(".svg"), figures.latency(rows))
        print(path.with_suffix(".svg"))


def _settings(options: LatencyOptions) -> list[tuple[int, int]]:
    """Threads and batches; says for which there are no cores."""
    for field in ("models", "threads", "batches"):
        values = getattr(options, field)
        if not values or (field != "models" and min(values) <= 0):
            raise UserError(f"latency.{field} is {values!r}; give at least one, above 0.")
    cores = _cores()
    for threads in options.threads:
        if threads > cores:
            print(f"{threads} threads are left out: this process has {cores} cores", flush=True)
    settings = [(threads, batch) for threads in options.threads for batch in options.batches if threads <= cores]
    if not settings:
        raise UserError(f"latency.threads is {tuple(options.threads)!r}; this process has {cores} cores.")
    return settings


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _installed(options: LatencyOptions) -> list[str]:
    """The runtimes that are here; says which are not."""
    installed, packages = [], {name: runtimes.module(name).PACKAGE for name in options.runtimes}
    for name, package in packages.items():
        if runtimes.installed(name):
            installed.append(name)
        else:
            print(f"{name} is not installed and left out; pip install {package}", flush=True)
    if not installed:
        raise UserError(f"None of latency.runtimes is installed; pip install {' '.join(packages.values())}.")
    return installed


def _write(ws: Workspace, folder: pathlib.Path, names: list[str]) -> dict[str, Row]:
    """By model: its file for each suffix, what a job says of it, and its logits in JAX for one image."""
    suffixes, rows = {runtimes.suffix(name) for name in names}, {}
    for index, name in enumerate(progress(ws.config.latency.models, "files", "model")):
        artifact = _random.load(ws, name)
        size, model = artifact.preprocess.size, artifact.meta["model"]
        made = {suffix: folder / f"{index}.{suffix}" for suffix in suffixes}
        export = ws.config.export
        if reason := onnx.obstacle(artifact.plan, export.onnx_target, export.onnx_opset):
            print(f"no ONNX file: {name} {reason}", flush=True)
            made.pop("onnx", None)
        if "onnx" in made:
            onnx.export(artifact, made["onnx"], export.onnx_target, opset=export.onnx_opset)
        if "stablehlo" in made:
            platforms = (os.environ.get("JAX_PLATFORMS") or "cpu").split(",")
            stablehlo.export(artifact.model, artifact.params, size, platforms, made["stablehlo"])
        if "safetensors" in made:
            safetensors.save(artifact, made["safetensors"])
        family, fields = models.architecture(model, size)
        images = np.random.default_rng(0).standard_normal((1, size, size, 3), np.float32)
        for suffix in [one for one in made if one.endswith("tflite")]:
            variant = suffix.removesuffix("tflite").rstrip(".") or litert.usual(artifact.plan)
            if reason := litert.obstacle(artifact.plan, variant) or litert.missing():
                print(f"no LiteRT file {variant}: {name} {reason}", flush=True)
                del made[suffix]
            else:
                litert.export(artifact, made[suffix], variant, images)
        logits = np.asarray(jax.jit(artifact.model.apply)({"params": artifact.params}, images))[0]
        del artifact
        jax.clear_caches()
        give_back()
        rows[name] = {"files": made, "job": {"size": size, "family": family, "fields": fields}, "logits": logits}
    return rows


def _measure(files: Mapping[str, Row], names: list[str], threads: int, batch: int, rounds: int) -> list[Row]:
    """A row for every model that a runtime can run: memory, load time, and what every round took."""
    suffixes = {name: runtimes.suffix(name) for name in names}
    keys = [(name, model) for name in names for model in files if suffixes[name] in files[model]["files"]]
    processes: dict[Key, Process] = {}
    rows: dict[Key, Row] = {}
    with contextlib.ExitStack() as stack:
        for key in progress(keys, "loading", "model"):
            name, model = key
            processes[key] = stack.enter_context(contextlib.closing(Process(name, threads)))
            path, job = (
                files[model]["files"][suffixes[name]],
                {**files[model]["job"], "threads": threads, "batch": batch},
            )
            if loaded := ask(processes[key], key, load=str(path), job=job):
                logits, jax_logits = np.asarray(loaded.pop("logits")), files[model]["logits"]
                difference = float(np.abs(logits - jax_logits).max() / np.abs(jax_logits).max())
                rows[key] = {"runtime": name, "model": model, "file_mb": path.stat().st_size / 1e6, **loaded}
                rows[key] |= {"difference": difference, "wall_ms": [], "cpu_ms": []}
        for _ in progress(range(WARMUP + rounds), "latency", "round"):
            for key in list(rows):
                if took := ask(processes[key], key):
                    for clock, value in took.items():
                        rows[key][clock].append(value)
                else:
                    del rows[key]
    return [{**row, **{clock: row[clock][WARMUP:] for clock in ("wall_ms", "cpu_ms")}} for row in rows.values()]


def ask(process: Process, key: Key, **question: Any) -> Row:
    """The answer; an empty one where there is none, and a line that says why."""
    try:
        return process.ask(**question)
    except RuntimeFailedError as error:
        print(f"{key[0]} does not run {key[1]}: {error}", flush=True)
        return {}


def compare(rows: list[Row], model: str, runtime: str) -> list[Row]:
    """Adds to every row `wall` and `cpu`: `ms`, and how many times faster than `model` it is `in_runtime`, and
    `in_first`, than that in `runtime`; each the median of the rounds and their 10 and 90 % points. No number is
    where the reference did not run."""
    times = {(row["runtime"], row["model"]): row for row in rows}

    def faster(row: Row, reference: Row | None, clock: str) -> dict[str, float] | None:
        return None if reference is None else spread(np.divide(reference[clock], row[clock]))

    compared = []
    for row in rows:
        same_runtime, first = times.get((row["runtime"], model)), times.get((runtime, model))
        clocks = {
            clock.removesuffix("_ms"): {
                "ms": spread(row[clock]),
                "in_runtime": faster(row, same_runtime, clock),
                "in_first": faster(row, first, clock),
            }
            for clock in ("wall_ms", "cpu_ms")
        }
        compared.append({**row, **clocks})
    return compared


def spread(values: Any) -> dict[str, float]:
    """Median, and the points below which 10 and 90 % are."""
    low, median, high = np.percentile(values, (10, 50, 90))
    return {"median": float(median), "low": float(low), "high": float(high)}


def text(rows: list[Row], threads: int, batch: int, reference: Key) -> str:
    """The two tables of one setting."""
    shown = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
    width, wide = (max([7, *(len(row[name]) for row in shown)]) for name in ("model", "runtime"))
    runtime, model = reference
    lines = [
        f"{threads} thread{'s' * (threads > 1)}, batch {batch}. Medians [10-90 %]; times faster than {model} in the "
        f"same runtime, and than that in {runtime}",
        "",
        f"{'model':<{width}}  {'runtime':<{wide}} {'wall, ms':>22} {'faster':>17} {'than first':>10} "
        f"{'CPU, ms':>8} {'faster':>6} {'than first':>10}",
    ]
    for row in shown:
        wall, cpu = row["wall"], row["cpu"]
        lines.append(
            f"{row['model']:<{width}}  {row['runtime']:<{wide}} {_range(wall['ms'], '.1f'):>22} "
            f"{_range(wall['in_runtime'], '.2f'):>17} {_median(wall['in_first']):>10} "
            f"{cpu['ms']['median']:>8.1f} {_median(cpu['in_runtime']):>6} {_median(cpu['in_first']):>10}"
        )
    lines += ["", f"{'model':<{width}}  {'runtime':<{wide}}" + "".join(f" {title:>11}" for title, _, _ in MEMORY)]
    for row in shown:
        values = "".join(f" {of(row):>11{style}}" for _, style, of in MEMORY)
        lines.append(f"{row['model']:<{width}}  {row['runtime']:<{wide}}{values}")
    return "\n".join(lines)


MEMORY: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
    ("file, MB", ".1f", lambda row: row["file_mb"]),
    ("load, s", ".2f", lambda row: row["load_s"]),
    ("peak, MB", ".0f", lambda row: row["peak_mb"]),
    ("of model", ".0f", lambda row: row["peak_mb"] - row["baseline_mb"]),
    ("logits off", ".0e", lambda row: row["difference"]),
)
"""What the second table shows of a row: peak memory of the process, that without what the runtime takes alone, and by
how much the logits differ from those of the model in JAX."""


def _range(value: Mapping[str, float] | None, style: str) -> str:
    return f"{value['median']:{style}} [{value['low']:{style}}-{value['high']:{style}}]" if value else "-"


def _median(value: Mapping[str, float] | None) -> str:
    return f"{value['median']:.2f}" if value else "-"


def versions(names: list[str]) -> dict[str, str]:
    packages = {runtimes.module(name).PACKAGE for name in names}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


def machine() -> dict[str, Any]:
    """The processor's name and its vector instructions, as far as the system says them."""
    info = pathlib.Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    values = {name.strip(): value.strip() for name, value in fields.items()}
    flags = [flag for flag in values.get("flags", "").split() if flag.startswith(("avx", "amx"))]
    return {"processor": values.get("model name", platform.processor()), "cores": _cores(), "vectors": flags}
