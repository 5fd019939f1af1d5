"""bench latency: models as their exported files run, in several runtimes, side by side.

`latency.models` are artefacts, by their name in the work directory or their path, or "random:FORM": the shapes and
ranks of the configuration, or with "random:FORM@PATH" those of another plan.json, and random weights, which take the
same time. A model is written as each runtime reads it: ONNX for ONNX Runtime and OpenVINO, for the target that is named
behind them, StableHLO for JAX, safetensors for PyTorch. The peer "nncf" is OpenVINO with what NNCF makes of float ONNX.

Each model of each runtime is loaded by a process of its own, which has as many cores as threads. In every round each is
called once, so that other load on the machine falls on all; ratios are taken within a round. What is not installed is
left out, and so is, with one line, what a runtime cannot run. All are in memory at once; where that is short, name
fewer.
"""

import contextlib
import fnmatch
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lraqvit_jax import models, runtimes
from lraqvit_jax.base import files
from lraqvit_jax.base.console import progress
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.bench import _random
from lraqvit_jax.bench._process import Process, RuntimeFailedError, last_words
from lraqvit_jax.bench._worker import give_back
from lraqvit_jax.config import Config
from lraqvit_jax.export import litert, onnx, safetensors, stablehlo, targets
from lraqvit_jax.options.bench import LatencyOptions
from lraqvit_jax.plan.records import Plan
from lraqvit_jax.report import figures
from lraqvit_jax.run import opening
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights.artifacts import Artifact

WARMUP = 2
"""Rounds that do not count."""
LEAST = 5
"""Rounds of a setting, whatever its time is limited to."""
BESIDE = (".bin", ".onnx_data")
"""Endings of files that hold the weights of another one of their name."""
Key = tuple[str, str]
"""Runtime and model."""
Row = dict[str, Any]


def run(config: Config, workdir: str) -> None:
    """Writes WORKDIR/latency-runtimes.json, .md and .svg, and prints tables.

    Raises:
        UserError: a runtime, a target, a form or an artefact that there is not; a pattern that skips nothing; nothing
            is installed that could run.
    """
    ws = opening.open_workspace(config, workdir, write=False)
    options = ws.config.latency
    settings, names = _settings(options), _installed(options)
    _random.check(ws, options.models)
    keys = _keys(options, names)
    ws.directory.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=ws.directory) as folder:
        exported = _write(ws, pathlib.Path(folder), keys)
        for threads, batch in settings:
            timings = _measure(exported, keys, threads, batch, options)
            own = references([(row["runtime"], row["model"]) for row in timings], options.models[0])
            timings = [{**row, "reference": own.get(runtimes.engine(row["runtime"]), "")} for row in timings]
            timings = compare(timings, options.models[0], names[0])
            rows += [{**row, "threads": threads, "batch": batch} for row in timings]
            print(f"\n{text(rows, threads, batch, (names[0], options.models[0]))}\n", flush=True)
    path = ws.directory / "latency-runtimes.json"
    result = {"schema": 1, "model": ws.model, "reference": {"model": options.models[0], "runtime": names[0]}}
    result |= {"rounds": options.rounds, "machine": machine(), "versions": versions(names), "rows": rows}
    files.write_atomically(path, json.dumps(result, indent=1) + "\n")
    print(path)
    if rows:
        files.write_atomically(path.with_suffix(".md"), markdown(result))
        print(path.with_suffix(".md"))
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
    """The runtimes that are here; says which are not. UserError for a kind of file that there is not."""
    installed, packages = [], {name: " ".join(runtimes.packages(name)) for name in options.runtimes}
    for name, package in packages.items():
        kind, suffix = runtimes.kind(name), runtimes.module(name).SUFFIX
        if kind and suffix == "onnx":
            targets.resolved(kind)
        elif kind:
            litert.obstacle({}, kind)
        if runtimes.installed(name):
            installed.append(name)
        else:
            print(f"{name} is not installed and left out; pip install {package}", flush=True)
    if not installed:
        raise UserError(f"None of latency.runtimes is installed; pip install {' '.join(packages.values())}.")
    return installed


def _keys(options: LatencyOptions, names: Sequence[str]) -> list[Key]:
    """What is to be timed, runtime by runtime. UserError for a pattern that nothing is skipped by."""
    keys = [(name, model) for name in names for model in options.models]
    every = [(name, model) for name in options.runtimes for model in options.models]
    for pattern in options.skip:
        if not any(_skips(pattern, key) for key in every):
            raise UserError(
                f"latency.skip has {pattern!r}, which none of the runtimes and models meets; write it as in "
                f"{' '.join(every[0])!r}, or drop it."
            )
    left = [key for key in keys if not any(_skips(pattern, key) for pattern in options.skip)]
    if not left:
        raise UserError(f"latency.skip is {options.skip!r} and leaves nothing to time; name less.")
    return left


def references(keys: Sequence[Key], model: str) -> dict[str, str]:
    """By engine, the runtime in which `model` is what others of that engine are compared with: of those that ran it,
    the one whose options are named first, where the file has no integers that the model has not."""
    own: dict[str, str] = {}
    for name, one in keys:
        if one == model and not runtimes.quantizes(name):
            own.setdefault(runtimes.engine(name), name)
    return own


def _skips(pattern: str, key: Key) -> bool:
    return fnmatch.fnmatchcase(" ".join(key), pattern)


def _write(ws: Workspace, folder: pathlib.Path, keys: Sequence[Key]) -> dict[str, Row]:
    """By model: its file for each suffix, what a job says of it, its shape, and its logits in JAX for one image."""
    rows = {}
    for index, name in enumerate(progress(list(dict.fromkeys(model for _, model in keys)), "files", "model")):
        artifact = _random.load(ws, name)
        size, model = artifact.preprocess.size, artifact.meta["model"]
        images = np.random.default_rng(0).standard_normal((1, size, size, 3), np.float32)
        made = {}
        for suffix in dict.fromkeys(runtimes.suffix(runtime) for runtime, one in keys if one == name):
            path = folder / f"{index}.{suffix}"
            if reason := _file(ws, artifact, path, suffix, images):
                print(f"no {suffix} file: {name} {reason}", flush=True)
            else:
                made[suffix] = path
        family, fields = models.architecture(model, size)
        logits = np.asarray(jax.jit(artifact.model.apply)({"params": artifact.params}, images))[0]
        row = {"files": made, "job": {"size": size, "family": family, "fields": fields}, "logits": logits}
        rows[name] = row | {"dense": _dense(artifact.plan), "integers": has_integers(artifact.plan)}
        del artifact
        jax.clear_caches()
        give_back()
    return rows


def _dense(plan: Plan) -> bool:
    """Whether no layer has a pair, an identity block, or fewer channels than the dense model's."""
    return not any(layer.rank or layer.width or layer.basis for layer in plan.values())


def has_integers(plan: Plan) -> bool:
    return any(layer.form == "quantized" for layer in plan.values())


def _file(ws: Workspace, artifact: Artifact, path: pathlib.Path, suffix: str, images: np.ndarray) -> str:
    """Writes one file of a model; why there is none, as the rest of a sentence, else ""."""
    kind, _, last = suffix.rpartition(".")
    if last == "onnx":
        target, opset = kind or ws.config.export.onnx_target, ws.config.export.onnx_opset
        if reason := onnx.obstacle(artifact.plan, target, opset):
            return reason
        onnx.export(artifact, path, target, opset=opset)
    elif last == "xml":
        return "has integers already" if has_integers(artifact.plan) else _nncf(artifact, path)
    elif last == "stablehlo":
        platforms = (os.environ.get("JAX_PLATFORMS") or "cpu").split(",")
        stablehlo.export(artifact.model, artifact.params, artifact.preprocess.size, platforms, path)
    elif last == "safetensors":
        safetensors.save(artifact, path)
    else:
        variant = kind or litert.usual(artifact.plan)
        if reason := litert.obstacle(artifact.plan, variant) or litert.missing():
            return reason
        litert.export(artifact, path, variant, images)
    return ""


def _nncf(artifact: Artifact, path: pathlib.Path) -> str:
    """Has NNCF quantize the float ONNX file, in a process of its own; what it said where it failed."""
    source = path.with_suffix(".onnx")
    onnx.export(artifact, source)
    command = [sys.executable, "-m", "lraqvit_jax.runtimes.nncf", str(source), str(path)]
    command += [str(artifact.preprocess.size)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    source.unlink()
    return "" if done.returncode == 0 else f"is not quantized by NNCF: {last_words(done.stderr)}"


def megabytes(path: pathlib.Path) -> float:
    """Of a model's file, and of that with its weights, where they lie beside it."""
    return sum(one.stat().st_size for one in (path, *map(path.with_suffix, BESIDE)) if one.exists()) / 1e6


def _measure(
    files: Mapping[str, Row], keys: Sequence[Key], threads: int, batch: int, options: LatencyOptions
) -> list[Row]:
    """A row for every model that a runtime can run: memory, load time, and what every round took."""
    suffixes = {name: runtimes.suffix(name) for name, _ in keys}
    keys = [(name, model) for name, model in keys if suffixes[name] in files[model]["files"]]
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
                rows[key] = {"runtime": name, "model": model, "file_mb": megabytes(path), **loaded}
                rows[key] |= {"dense": files[model]["dense"]}
                rows[key] |= {"integers": files[model]["integers"] or runtimes.quantizes(name)}
                rows[key] |= {"difference": difference, "wall_ms": [], "cpu_ms": []}
        started, least = time.monotonic(), WARMUP + min(LEAST, options.rounds)
        for index in progress(range(WARMUP + options.rounds), "latency", "round"):
            if options.seconds and index >= least and time.monotonic() - started > options.seconds:
                break
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
    """Adds to every row `wall` and `cpu`: `ms`, and how many times faster it is

        in_runtime   than `model` in the row's `reference`, the same runtime
        in_first     than `model` in `runtime`
        in_best      than the dense model of integers that is fastest by the clock on the wall, in any runtime

    each the median of the rounds and their 10 and 90 % points. No number is where the reference did not run.
    """
    times = {(row["runtime"], row["model"]): row for row in rows}
    compared, fastest, first = [], best(rows), times.get((runtime, model))
    for row in rows:
        references = {"in_runtime": times.get((row["reference"], model)), "in_first": first, "in_best": fastest}
        clocks = {}
        for clock in ("wall_ms", "cpu_ms"):
            faster = {
                name: None if reference is None else spread(np.divide(reference[clock], row[clock]))
                for name, reference in references.items()
            }
            clocks[clock.removesuffix("_ms")] = {"ms": spread(row[clock]), **faster}
        compared.append({**row, **clocks})
    return compared


def best(rows: Sequence[Row]) -> Row | None:
    """The dense model of integers with the least median of the clock on the wall, of the rows of one setting."""
    dense = [row for row in rows if row["dense"] and row["integers"]]
    return min(dense, key=lambda row: np.median(row["wall_ms"]), default=None)


def spread(values: Any) -> dict[str, float]:
    """Median, and the points below which 10 and 90 % are."""
    low, median, high = np.percentile(values, (10, 50, 90))
    return {"median": float(median), "low": float(low), "high": float(high)}


def text(rows: list[Row], threads: int, batch: int, reference: Key) -> str:
    """The two tables of one setting."""
    shown = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
    width, wide = (max([7, *(len(row[name]) for row in shown)]) for name in ("model", "runtime"))
    runtime, model = reference
    fastest = best(shown)
    lines = [
        f"{_setting(threads, batch)}. Medians [10-90 %]; times faster than {model} in the "
        f"same runtime, than that in {runtime}, and than the fastest dense model of integers"
        + (f", {fastest['model']} in {fastest['runtime']}" if fastest else ""),
        "",
        f"{'model':<{width}}  {'runtime':<{wide}} {'wall, ms':>22} {'faster':>17} {'than first':>10} "
        f"{'than best int8':>17} {'CPU, ms':>8} {'faster':>6} {'than first':>10} {'than best':>9}",
    ]
    for row in shown:
        wall, cpu = row["wall"], row["cpu"]
        lines.append(
            f"{row['model']:<{width}}  {row['runtime']:<{wide}} {_range(wall['ms'], '.1f'):>22} "
            f"{_range(wall['in_runtime'], '.2f'):>17} {_median(wall['in_first']):>10} "
            f"{_range(wall['in_best'], '.2f'):>17} "
            f"{cpu['ms']['median']:>8.1f} {_median(cpu['in_runtime']):>6} {_median(cpu['in_first']):>10} "
            f"{_median(cpu['in_best']):>9}"
        )
    lines += ["", f"{'model':<{width}}  {'runtime':<{wide}}" + "".join(f" {title:>11}" for title, _, _ in MEMORY)]
    for row in shown:
        values = "".join(f" {of(row):>11{style}}" for _, style, of in MEMORY)
        lines.append(f"{row['model']:<{width}}  {row['runtime']:<{wide}}{values}")
    return "\n".join(lines)


def markdown(result: Mapping[str, Any]) -> str:
    """The page latency-runtimes.md: where and with what it was measured, and one table, a column for each setting. A
    cell has the clock on the wall, then times dense float in the same runtime, then times the best dense integers.

    Args:
        result: as it is written to latency-runtimes.json.
    """
    rows, machine, reference = result["rows"], result["machine"], result["reference"]
    settings = list(dict.fromkeys((row["threads"], row["batch"]) for row in rows))
    bests = {setting: best([row for row in rows if (row["threads"], row["batch"]) == setting]) for setting in settings}
    named = "; ".join(f"{_setting(*one)}: {row['model']} in {row['runtime']}" for one, row in bests.items() if row)
    counts = sorted({len(row["wall_ms"]) for row in rows})
    rounds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    lines = [
        f"{result['model']}. {machine['processor']}, {machine['cores']} cores ({' '.join(machine['vectors'])}). "
        f"{versions}. Medians of {rounds} rounds, all rows of a column in turns [10 and 90 % points]: "
        f"milliseconds of the clock on the wall; times {reference['model']} of the same runtime, with the options "
        "named first; times the fastest dense model of integers, in bold" + (f" ({named})" if named else "") + ".",
        "",
        "| model | runtime | MB | " + " | ".join(_setting(*one) for one in settings) + " |",
        "|---" * (3 + len(settings)) + "|",
    ]
    for runtime, model in dict.fromkeys((row["runtime"], row["model"]) for row in rows):
        own = {
            (row["threads"], row["batch"]): row for row in rows if (row["runtime"], row["model"]) == (runtime, model)
        }
        cells = [_cell(own.get(setting), bests[setting]) for setting in settings]
        size = next(iter(own.values()))["file_mb"]
        lines.append(f"| {model.removeprefix('random:')} | {runtime} | {size:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None, fastest: Row | None) -> str:
    if row is None:
        return ""
    times = row["wall"]
    cell = "; ".join((_range(times["ms"], ".1f"), _range(times["in_runtime"], ".2f"), _range(times["in_best"], ".2f")))
    return f"**{cell}**" if row is fastest else cell


def _setting(threads: int, batch: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}, batch {batch}"


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
    packages = {package for name in names for package in runtimes.packages(name)}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


def machine() -> dict[str, Any]:
    """The processor's name and its vector instructions, as far as the system says them."""
    info = pathlib.Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    values = {name.strip(): value.strip() for name, value in fields.items()}
    flags = [flag for flag in values.get("flags", "").split() if flag.startswith(("avx", "amx"))]
    return {"processor": values.get("model name", platform.processor()), "cores": _cores(), "vectors": flags}
