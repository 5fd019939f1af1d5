"""bench peers: other people's quantizers on the same model and images as ours.

Each of `peers.peers` gets the float ONNX file of the artefact `dense` and the `quant.calibration_images` images that
our models were calibrated on, and is run by its own library's defaults for a vision transformer (`bench._peers`), in a
process of its own. Beside them stand the dense model and `peers.models`, artefacts of this work directory: as ONNX
files for this machine's processor in ONNX Runtime, and as `qdq` files in OpenVINO.

All answer the same images, one at a time on one thread; every answer is compared with the dense model's in ONNX
Runtime, image by image, and the drop of accuracy has the interval of `base.paired`. Times are those of `bench
latency`: each is called once in every round. What is not installed is left out, and so is, with one line, what does
not work.
"""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.lib import format as npy

from lraqvit_jax import models, runtimes
from lraqvit_jax.base import files, paired
from lraqvit_jax.base.console import progress
from lraqvit_jax.base.errors import UserError, nearest, short
from lraqvit_jax.bench import _peers, latency
from lraqvit_jax.bench._process import Process
from lraqvit_jax.config import DENSE_INTEGERS, Config
from lraqvit_jax.export import onnx, targets
from lraqvit_jax.run import opening, results
from lraqvit_jax.run.workspace import Workspace
from lraqvit_jax.weights import artifacts

NAME = "peers.json"
DENSE = "dense"
FLOAT = "float.onnx"
NEEDED = "requirements-peers.txt"
BATCH = 10


class Candidate(NamedTuple):
    """A file to measure.

    Attributes:
        name: of the peer, or of the artefact.
        by: whose it is.
        call: what made it.
        runtime: that runs it.
        path: of the file.
        seconds: that making it took; 0 for ours, which the run has made.
    """

    name: str
    by: str
    call: str
    runtime: str
    path: pathlib.Path
    seconds: float = 0.0


def run(config: Config, workdir: str) -> None:
    """Writes WORKDIR/peers.json, and prints a table.

    Raises:
        UserError: a peer or an artefact that there is not; no dense model yet, or no label to be right about.
    """
    for name in config.peers.peers:
        if name not in _peers.PEERS:
            raise UserError(f"peers.peers has {name!r}, which is none; {nearest(name, _peers.PEERS)}")
    ws = opening.open_workspace(config, workdir, write=False)
    ours = _ours(ws)
    with tempfile.TemporaryDirectory(dir=ws.directory) as place:
        folder = pathlib.Path(place)
        labels = _images(ws, folder)
        candidates = [*_exported(ws, ours, folder), *_made(ws, folder)]
        rows = list(_measured(ws, candidates, folder, labels))
    rows = compared(rows, labels)
    report = {"schema": 1, "model": ws.model, "images": len(labels), "labels": labels.tolist()}
    report |= {"calibration_images": config.quant.calibration_images, "control_images": config.peers.control_images}
    report |= {"max_drop": config.peers.max_drop, "rounds": config.peers.rounds, "machine": latency.machine()}
    files.write_atomically(ws.directory / NAME, json.dumps(report | {"rows": rows}, indent=1) + "\n")
    print(f"\n{text(rows)}\n\n{ws.directory / NAME}")


def _ours(ws: Workspace) -> list[str]:
    """Names of our artefacts, the dense one first."""
    best = results.pick(results.read(ws.directory)["rows"])
    usual = [DENSE_INTEGERS, *([best["name"]] if best else [])]
    names = list(ws.config.peers.models) or [name for name in usual if ws.has(name)]
    for name in [DENSE, *names]:
        if not ws.has(name):
            raise UserError(f"peers.models has {name!r}, which {ws.directory} does not have; run its stage first.")
    return list(dict.fromkeys([DENSE, *names]))


def _images(ws: Workspace, folder: pathlib.Path) -> np.ndarray:
    """Writes images.npy, calibration.npy and control.npy, prepared; the labels of the first."""
    options, size = ws.config.peers, ws.preprocess.size
    batches, chosen = ws.evaluation(options.images or sys.maxsize, BATCH)
    labels, rows = list[int](), 0
    whole = npy.open_memmap(folder / "images.npy", "w+", np.float32, (len(chosen), size, size, 3))
    for batch in progress(batches, "images", "batch"):
        real = batch["mask"] & (batch["label"] >= 0)
        whole[rows : rows + real.sum()] = batch["image"][real]
        rows += int(real.sum())
        labels += batch["label"][real].tolist()
    if not rows:
        raise UserError("data.eval has no label to be right about; name labelled images.")
    whole.flush()
    images = ws.config.quant.calibration_images
    drawn, _ = ws.calibration(images, whole=True)
    for name, some in (("calibration", drawn), ("control", ws.others(images, options.control_images))):
        np.save(folder / f"{name}.npy", np.concatenate([batch["image"][batch["mask"]] for batch in some]))
    return np.asarray(labels)


def _exported(ws: Workspace, names: Sequence[str], folder: pathlib.Path) -> Iterator[Candidate]:
    """Our files, and FLOAT with the dense model's answers to the control images, which the peers are given."""
    for name in progress(names, "files", "model"):
        artifact = artifacts.load_artifact(ws.path(name))
        if name == DENSE:
            onnx.export(artifact, folder / FLOAT, "qdq")
            control = np.load(folder / "control.npy")
            parts = np.array_split(control, -(-len(control) // BATCH))
            apply = jax.jit(artifact.model.apply)
            answers = [np.asarray(apply({"params": artifact.params}, part)).argmax(-1) for part in parts]
            np.save(folder / "answers.npy", np.concatenate(answers))
        # A float model is the same in both; a runtime that spells Attention out runs either.
        of_openvino = "qdq" if latency.has_integers(artifact.plan) else "avx2"
        for runtime, target in (("onnxruntime", targets.resolved("auto")), ("openvino", of_openvino)):
            if not runtimes.installed(runtime):
                print(f"{runtime} is not installed and left out; pip install {runtime}", flush=True)
            elif reason := onnx.obstacle(artifact.plan, target):
                print(f"no file of {name} for {runtime}: {name} {reason}", flush=True)
            else:
                path = folder / f"{name}.{target}.onnx"
                onnx.export(artifact, path, target)
                yield Candidate(name, "lraqvit_jax", f"target {target}", runtime, path)


def _made(ws: Workspace, folder: pathlib.Path) -> Iterator[Candidate]:
    """What each peer makes, or a line that says why it makes nothing."""
    options = ws.config.peers
    narrow = targets.resolved("auto") == "avx2"
    (folder / "job.json").write_text(json.dumps({"max_drop": options.max_drop, "narrow": narrow}))
    for name in options.peers:
        peer = _peers.PEERS[name]
        if missing := _peers.missing(peer):
            print(f"{name} is left out, {' and '.join(missing)} not being installed; see {NEEDED}", flush=True)
            continue
        if made := make(name, folder, options.minutes):
            path, seconds = made
            print(f"{name}: {latency.megabytes(path):.3f} MB in {seconds:.0f} s", flush=True)
            yield Candidate(name, _peers.version(peer), peer.call, peer.runtime, path, seconds)


def make(name: str, folder: pathlib.Path, minutes: float) -> tuple[pathlib.Path, float] | None:
    """Runs a peer in a process of its own: the file that it makes, and the seconds that took; None, and a line that
    says why, where it makes none."""
    words = [sys.executable, "-m", "lraqvit_jax.bench._peers", name, str(folder)]
    pipes: Any = {"capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(words, check=False, timeout=60 * minutes, **pipes)
    except subprocess.TimeoutExpired:
        print(f"{name} makes nothing within {minutes:g} minutes; peers.minutes gives it more", flush=True)
        return None
    result = folder / f"{name}.json"
    if done.returncode or not result.exists():
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        wrong = next((line for line in reversed(last) if re.match(r"[\w.]*(Error|Exception)\b", line)), last[-1])
        print(f"{name} makes nothing, its process ended with {done.returncode}: {short(wrong, 300)}", flush=True)
        return None
    made = files.json_object(result, "run it again")
    return folder / made["file"], made["seconds"]


def _measured(
    ws: Workspace, candidates: Sequence[Candidate], folder: pathlib.Path, labels: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A row for each that runs: its answers, and its times in rounds that all have in common."""
    family, fields = models.architecture(ws.model, ws.preprocess.size)
    job = {"size": ws.preprocess.size, "family": family, "fields": fields, "threads": 1, "batch": 1}
    processes, rows = dict[int, Process](), dict[int, dict[str, Any]]()
    with contextlib.ExitStack() as stack:
        for index, one in enumerate(progress(candidates, "answers", "model")):
            processes[index] = stack.enter_context(contextlib.closing(Process(one.runtime, 1)))
            key = (one.runtime, one.name)
            if not latency.ask(processes[index], key, load=str(one.path), job=job):
                continue
            question = {"images": str(folder / "images.npy"), "count": len(labels)}
            if answered := latency.ask(processes[index], key, **question):
                rows[index] = {**one._asdict(), "path": one.path.name, "file_mb": latency.megabytes(one.path)}
                rows[index] |= {"runtime_version": latency.versions([one.runtime])[runtimes.imported(one.runtime)]}
                rows[index] |= {"answers": answered["answers"], "wall_ms": [], "cpu_ms": []}
        for turn in progress(range(latency.WARMUP + ws.config.peers.rounds), "latency", "round"):
            for index, row in list(rows.items()):
                took = latency.ask(processes[index], (row["runtime"], row["name"]))
                if not took:
                    del rows[index]
                for clock in took if turn >= latency.WARMUP else ():
                    row[clock].append(took[clock])
    yield from rows.values()


def compared(rows: Sequence[Mapping[str, Any]], labels: np.ndarray) -> list[dict[str, Any]]:
    """Rows with what is derived: top-1 in percent, its drop against the dense model in ONNX Runtime with its interval,
    the share of equal answers, and the medians of the times.

    Args:
        rows: with `answers`, `wall_ms` and `cpu_ms`; the first is the dense model's.
        labels: of the images.

    Raises:
        UserError: the dense model did not run.
    """
    if not rows or rows[0]["name"] != DENSE:
        raise UserError("The dense model did not run, so that there is nothing to compare with; see the lines above.")
    dense = np.asarray(rows[0]["answers"])
    made = []
    for row in rows:
        answers = np.asarray(row["answers"])
        made.append(
            {
                **row,
                "top1": 100 * float(np.mean(answers == labels)),
                "drop": paired.drop(dense == labels, answers == labels)._asdict(),
                "agreement": 100 * float(np.mean(answers == dense)),
                **{clock.removesuffix("_ms"): latency.spread(row[clock]) for clock in ("wall_ms", "cpu_ms")},
            }
        )
    return made


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table; what made each row is under it."""
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"One image, one thread; drop of top-1 against dense in ONNX Runtime, points, with its 95 % interval; "
        f"{rows[0]['drop']['images']:,} images",
        "",
        f"{'model':<{width}}  {'runtime':<11} {'MB':>8} {'ms [10-90 %]':>19} {'CPU, ms':>8} {'top-1':>7} "
        f"{'drop':>23} {'as dense':>8} {'made in':>8}",
    ]
    for row in rows:
        wall, drop = row["wall"], row["drop"]
        times = f"{wall['median']:.1f} [{wall['low']:.1f}-{wall['high']:.1f}]"
        lost = f"{drop['drop']:+.2f} [{drop['low']:+.2f}, {drop['high']:+.2f}]"
        seconds = f"{row['seconds']:.0f} s" if row["seconds"] else ""
        line = (
            f"{row['name']:<{width}}  {row['runtime']:<11} {row['file_mb']:>8.3f} {times:>19} "
            f"{row['cpu']['median']:>8.1f} {row['top1']:>7.2f} {lost:>23} {row['agreement']:>8.2f} {seconds:>8}"
        )
        lines.append(line.rstrip())
    lines += ["", *dict.fromkeys(f"{row['name']:<{width}}  {row['by']}: {row['call']}" for row in rows)]
    return "\n".join(lines)
