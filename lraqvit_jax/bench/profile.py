"""bench profile: where ONNX Runtime spends the milliseconds of one image, by kind of operator.

Of `latency.models`, as `bench latency` has them: artefacts, or random weights. One image, one thread. First all models
in turn, in CPU time, so that other load falls on all of them; then each by itself under ONNX Runtime's profiler, the
least time of each node over the rounds. Its clock is that of the wall: leave the machine alone meanwhile.
"""

import collections
import json
import pathlib
import statistics as stats
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.bench import _random
from lraqvit_jax.config import Config
from lraqvit_jax.export import onnx
from lraqvit_jax.run import opening

ROUNDS, WARM = 15, 2


def run(config: Config, workdir: str) -> None:
    """Writes WORKDIR/profile.json and prints it.

    Raises:
        UserError: a form or an artefact that there is not.
    """
    ws = opening.open_workspace(config, workdir, write=False)
    names = list(ws.config.latency.models)
    _random.check(ws, names)
    image = np.random.default_rng(0).normal(0, 1, (1, ws.preprocess.size, ws.preprocess.size, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: pathlib.Path(folder) / f"{index}.onnx" for index, name in enumerate(names)}
        for name, path in paths.items():
            onnx.export(_random.load(ws, name), path, ws.config.export.onnx_target)
        whole = _times(paths, image)
        kinds = {name: _kinds(path, image) for name, path in paths.items()}
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    rows = {name: {"ms": whole[name], "bytes": sizes[name], "kinds": kinds[name]} for name in names}
    path = ws.directory / "profile.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps({"schema": 1, "model": ws.model, "rows": rows}, indent=1) + "\n")
    print(f"{table(rows)}\n\n{path}", flush=True)


def _session(path: pathlib.Path, profile: str = "") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _times(paths: Mapping[str, pathlib.Path], image: np.ndarray) -> dict[str, list[float]]:
    """Milliseconds of CPU time of every round, the forms in turn."""
    sessions = {name: _session(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS + WARM):
        for name, session in sessions.items():
            started = time.thread_time()
            session.run(None, {"images": image})
            times[name].append(1e3 * (time.thread_time() - started))
    return {name: values[WARM:] for name, values in times.items()}


def _kinds(path: pathlib.Path, image: np.ndarray) -> dict[str, float]:
    """Milliseconds by kind of operator."""
    session = _session(path, str(path.with_suffix("")))
    for _ in range(ROUNDS + WARM):
        session.run(None, {"images": image})
    events = json.loads(pathlib.Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    milliseconds: dict[str, float] = collections.defaultdict(float)
    for (kind, _), times in nodes.items():
        milliseconds[kind] += min(times)
    return dict(sorted(milliseconds.items(), key=lambda item: -item[1]))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Milliseconds in each form, in all, how often faster than the first (median of the rounds, tenth and ninetieth
    percentile), MB of the file, and by kind of operator."""
    width = max(map(len, rows)) + 2
    first, *_ = rows.values()
    lines = [f"{'':<22}" + "".join(f"{name:>{width}}" for name in rows)]

    def add(name: str, values: Any) -> None:
        lines.append(f"{name:<22}" + "".join(f"{value:>{width}}" for value in values))

    ratios = [np.divide(first["ms"], row["ms"]) for row in rows.values()]
    add("ms", [f"{stats.median(row['ms']):.1f}" for row in rows.values()])
    add("times faster", [f"{np.median(ratio):.2f}" for ratio in ratios])
    add("  10 %, 90 %", ["{:.2f} {:.2f}".format(*np.quantile(ratio, (0.1, 0.9))) for ratio in ratios])
    add("MB", [f"{row['bytes'] / 1e6:.1f}" for row in rows.values()])
    kinds = {
        kind: max(row["kinds"].get(kind, 0) for row in rows.values()) for row in rows.values() for kind in row["kinds"]
    }
    for kind in sorted(kinds, key=lambda kind: -kinds[kind]):
        if kinds[kind] >= 0.05:
            add(kind, [f"{row['kinds'].get(kind, 0):.2f}" for row in rows.values()])
    return "\n".join(lines)
