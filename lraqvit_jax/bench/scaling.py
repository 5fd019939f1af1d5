"""bench scaling: what a distillation step computes and sends on many devices, from programs compiled for simulations.

Nothing is run. The step of each model is compiled at depths 1 and 2; blocks are equal, so that every quantity is linear
in the depth (a test holds depth 3 to it), and the model's own depth follows. Its collectives turn into bytes that a
device sends in rings, and those into seconds on the two machines below, whose figures are their makers', not measured.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lraqvit_jax import models
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.bench import _simulate
from lraqvit_jax.bench._collectives import Collective, wire_bytes
from lraqvit_jax.config import Config

MFU = 0.4
"""Share of the peak that the products of a step reach; assumed."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What its makers say of it.

    Attributes:
        flops: a second, of dense bfloat16 products, a device.
        near: bytes a second that a device sends one way inside an island.
        island: devices of one.
        far: bytes a second that a device sends one way between islands.
    """

    flops: float
    near: float
    island: int
    far: float


MACHINES = {
    # 4 links of 50 GB/s each way; a ring along one axis of the torus uses two. 25 GB/s of Ethernet a host of 8.
    "v5e": Machine(197e12, 100e9, 256, 3.125e9),
    # NVLink in a node of 8; 400 Gb/s of InfiniBand a GPU between nodes.
    "h100": Machine(989e12, 450e9, 8, 50e9),
}
LAYOUTS = {"data": (1, 1), "fsdp": (0, 1), "data_fsdp": (8, 1), "mixed": (4, 2)}
"""Sizes of fsdp (0 is all devices) and tensor; data takes the rest."""


def run(config: Config, workdir: str) -> None:
    """Compiles every case that scaling.json in the work directory lacks, and prints the table."""
    options = config.scaling
    for name in options.layouts:
        if name not in LAYOUTS:
            raise UserError(f"scaling.layouts has {name!r}; {nearest(name, LAYOUTS)}")
    path = files.locate(workdir) / "scaling.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    print(HEAD, flush=True)
    for model in options.models:
        for devices in options.devices:
            ideal = 0.0
            for layout in options.layouts:
                depths = []
                for depth in (1, 2):
                    question = _question(config, f"{model}_depth{depth}", layout, devices)
                    key = json.dumps(question, sort_keys=True)
                    if key not in cases:
                        cases[key] = _summary(_simulate.ask(question))
                        files.write_atomically(path, json.dumps({"schema": 1, "cases": cases}, indent=1) + "\n")
                    depths.append(cases[key])
                row = at_depth(depths[0], depths[1], _depth(model))
                ideal = ideal or row["flops"]
                print(_line(model, layout, devices, row, ideal), flush=True)
    print(f"\n{path}")


def _depth(model: str) -> int:
    return models.spec(model, num_classes=2, image_size=224).blocks


def _question(config: Config, model: str, layout: str, devices: int) -> dict[str, Any]:
    fsdp, tensor = LAYOUTS[layout]
    fsdp = fsdp or devices
    mesh = {"data": devices // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
    if mesh["data"] * fsdp * tensor != devices:
        raise UserError(f"scaling.devices has {devices}, which {layout!r} cannot lay out; give a multiple of 8.")
    batch = devices * config.scaling.batch_per_device
    fields = {name: getattr(config, name) for name in ("dtype", "remat", "accumulate")}
    records: dict[str, Any] = {
        "sharding": config.sharding,
        "plan": config.plan,
        "run": config.runs[config.quant.source],
    }
    fields |= {name: dataclasses.asdict(record) for name, record in records.items()}
    return json.loads(json.dumps({"model": model, "batch": batch, "image_size": 224, "mesh": mesh, **fields}))


def _summary(answer: Mapping[str, Any]) -> dict[str, float]:
    """The quantities of a case that are linear in the depth."""
    collectives = [Collective(**fields) for fields in answer["collectives"]]
    sums = {"flops": answer["flops"], "argument_bytes": answer["argument_bytes"]}
    sums |= {"temporary_bytes": answer["temporary_bytes"]}
    for kind in sorted({collective.kind for collective in collectives}):
        sums[kind] = _sent(collective for collective in collectives if collective.kind == kind)
    sums["wire_bytes"] = _sent(collectives)
    sums["compiled_wire_bytes"] = _sent(
        dataclasses.replace(collective, bytes=collective.compiled_bytes) for collective in collectives
    )
    return sums | {f"{name}_seconds": seconds(collectives, machine) for name, machine in MACHINES.items()}


def _sent(collectives: Iterable[Collective]) -> float:
    """Bytes that a device sends in a step."""
    return sum(
        collective.times * wire_bytes(collective.kind, collective.size, collective.bytes) for collective in collectives
    )


def seconds(collectives: Sequence[Collective], machine: Machine) -> float:
    """What sending takes, one collective after another, latency not counted."""
    return sum(_sent([collective]) / bandwidth(collective.groups, machine) for collective in collectives)


def bandwidth(groups: Sequence[Sequence[int]], machine: Machine) -> float:
    """Bytes a second that each device of a ring sends: the slowest group counts.

    Where a group spans islands, its members in an island share their links to the next one.
    """

    def of(group: Sequence[int]) -> float:
        islands = len({device // machine.island for device in group})
        return machine.near if islands == 1 else min(machine.near, machine.far * len(group) / islands)

    return min(of(group) for group in groups)


def at_depth(at_one: Mapping[str, float], at_two: Mapping[str, float], depth: int) -> dict[str, float]:
    """Quantities at a depth, from those at depths 1 and 2."""
    names = dict.fromkeys((*at_one, *at_two))
    return {name: at_one.get(name, 0) + (depth - 1) * (at_two.get(name, 0) - at_one.get(name, 0)) for name in names}


HEAD = (
    f"{'model':<12} {'layout':<10} {'devices':>7} {'TFLOP':>7} {'GB sent':>8} {'as f32':>8} "
    + " ".join(f"{name + ' ms':>9} {'sent':>6} {'alone':>6} {'hidden':>6}" for name in MACHINES)
    + "   (a device and step; sent: ms; alone, hidden: efficiency with no overlap and with all)"
)


def _line(model: str, layout: str, devices: int, row: Mapping[str, float], ideal: float) -> str:
    """One row of the table; efficiency is against the FLOPs of the first layout and no communication."""
    cells = []
    for name, machine in MACHINES.items():
        best, compute = (flops / (MFU * machine.flops) for flops in (ideal, row["flops"]))
        sent = row[f"{name}_seconds"]
        alone, hidden = best / (compute + sent), best / max(compute, sent)
        cells.append(f"{1e3 * compute:>9.1f} {1e3 * sent:>6.1f} {100 * alone:>5.1f}% {100 * hidden:>5.1f}%")
    head = f"{model:<12} {layout:<10} {devices:>7} {row['flops'] / 1e12:>7.2f} {row['wire_bytes'] / 1e9:>8.3f} "
    return head + f"{row['compiled_wire_bytes'] / 1e9:>8.3f} " + " ".join(cells)
