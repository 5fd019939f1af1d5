"""bench profile: where ONNX Runtime spends the milliseconds of one image, by kind of operator.

    python -m lraqvit_jax.bench profile --config configs/deit_base.py --workdir DIR --config.weights= \
        --config.data.train=embedded:digits --config.data.eval=embedded:digits

Times the forms of the config's plan: dense, low rank, and every method of `quant.methods`. Weights and scales are
random: no weights or images are read, and kernels take as long on any. One image, one thread. First all forms in turn,
in CPU time, so that other load falls on all of them; then each by itself under ONNX Runtime's profiler, the least time
of each node over the rounds. Its clock is that of the wall: leave the machine alone meanwhile.
"""

import collections
import json
import pathlib
import statistics as stats
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lraqvit_jax import checkpoint, metrics, sharding, workspace
from lraqvit_jax import plan as plan_lib
from lraqvit_jax.export import onnx
from lraqvit_jax.plan import LayerPlan, Plan
from lraqvit_jax.quant import qarray
from lraqvit_jax.stages import quantize

ROUNDS, WARM = 15, 2


def run(config: dict[str, Any], workdir: str) -> None:
    """Writes WORKDIR/profile.json and prints it."""
    ws = workspace.open_workspace(config, workdir, write=False)
    plans: dict[str, Plan] = {"dense": plan_lib.dense(ws.spec.layers), "low rank": plan_lib.low_rank(ws.plan)}
    for name, method in ws.config["quant"]["methods"].items():
        plans[name] = {path: quantize.with_options(path, layer, method) for path, layer in ws.plan.items()}
    image = np.random.default_rng(0).normal(0, 1, (1, ws.preprocess.size, ws.preprocess.size, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: pathlib.Path(folder) / f"{name}.onnx" for name in plans}
        for name, plan in plans.items():
            onnx.export(_random(ws, plan), paths[name], ws.config["export"]["onnx_target"])
        whole = _times(paths, image)
        kinds = {name: _kinds(path, image) for name, path in paths.items()}
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    rows = {name: {"ms": whole[name], "bytes": sizes[name], "kinds": kinds[name]} for name in plans}
    path = ws.directory / "profile.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_atomically(path, json.dumps({"schema": 1, "model": ws.model, "rows": rows}, indent=1) + "\n")
    print(f"{table(rows)}\n\n{path}", flush=True)


def _random(ws: workspace.Workspace, plan: Plan) -> checkpoint.Artifact:
    """An artefact of that plan whose values keep activations near 1."""
    rng, meta = np.random.default_rng(0), {"name": "random", "model": ws.model, "num_classes": ws.num_classes}
    meta |= {"class_names": None, "preprocess": ws.preprocess.to_json(), "plan": plan_lib.to_json(plan)}
    model = checkpoint.build(meta)
    abstract = sharding.abstract_params(model, ws.preprocess.size, sharding.one_device())

    def fill(path: Any, leaf: Any) -> np.ndarray:
        *layer, name = (key.key for key in path)
        if name == "qvalue":
            return _integers(rng, plan["/".join(layer[:-1])], leaf)
        if name.endswith("scale"):
            return rng.uniform(0.01, 0.02, leaf.shape).astype(np.float32)
        return (rng.standard_normal(leaf.shape, np.float32) * leaf.shape[0] ** -0.5).astype(np.float32)

    return checkpoint.Artifact(model, jax.tree_util.tree_map_with_path(fill, abstract), ws.preprocess, meta)


def _integers(rng: np.random.Generator, layer: LayerPlan, leaf: Any) -> np.ndarray:
    """A stored kernel: any bytes where it is packed, else integers within its bits."""
    limit = qarray.qmax(layer.kernel_bits)
    low, high = (0, 256) if leaf.dtype == np.uint8 else (-limit, limit + 1)
    return rng.integers(low, high, leaf.shape).astype(leaf.dtype)


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
    found: dict[str, float] = collections.defaultdict(float)
    for (kind, _), times in nodes.items():
        found[kind] += min(times)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Milliseconds in each form, in all, how often faster than dense (median of the rounds, tenth and ninetieth
    percentile), MB of the file, and by kind of operator."""
    width = max(map(len, rows)) + 2
    dense = rows["dense"]["ms"]
    lines = [f"{'':<22}" + "".join(f"{name:>{width}}" for name in rows)]

    def add(name: str, values: Any) -> None:
        lines.append(f"{name:<22}" + "".join(f"{value:>{width}}" for value in values))

    ratios = [np.divide(dense, row["ms"]) for row in rows.values()]
    add("ms", [f"{stats.median(row['ms']):.1f}" for row in rows.values()])
    add("times dense", [f"{np.median(ratio):.2f}" for ratio in ratios])
    add("  10 %, 90 %", ["{:.2f} {:.2f}".format(*np.quantile(ratio, (0.1, 0.9))) for ratio in ratios])
    add("MB", [f"{row['bytes'] / 1e6:.1f}" for row in rows.values()])
    kinds = {
        kind: max(row["kinds"].get(kind, 0) for row in rows.values()) for row in rows.values() for kind in row["kinds"]
    }
    for kind in sorted(kinds, key=lambda kind: -kinds[kind]):
        if kinds[kind] >= 0.05:
            add(kind, [f"{row['kinds'].get(kind, 0):.2f}" for row in rows.values()])
    return "\n".join(lines)
