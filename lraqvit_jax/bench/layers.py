"""bench layers: how long each linear layer takes here, dense and at every rank: the table for `plan.unit=latency`.

Times one image's rows through one layer, compiled by XLA for this machine, float32; all forms in turn, so that other
load falls on all of them. Rank is not the whole cost: thin products use a processor worse than wide ones, and a table
shows from where on a pair really pays.
"""

import json
import statistics as stats
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.bench.step import timed
from lraqvit_jax.config import Config
from lraqvit_jax.devices import sharding
from lraqvit_jax.forms.dense import dense
from lraqvit_jax.forms.pair import low_rank
from lraqvit_jax.plan import ranks
from lraqvit_jax.run import opening

ROUNDS = 15
POINTS = 12
"""Ranks that are measured, evenly spread up to the break-even; between them `plan.cost.latency` interpolates."""


def run(config: Config, workdir: str) -> None:
    """Writes WORKDIR/latency.json and prints it."""
    ws = opening.open_workspace(config, workdir, write=False)
    multiple = ws.config.plan.multiple
    shapes = {(info.features_in, info.features_out, info.tokens): info for info in ranks.factorized(ws.spec.layers)}
    rows = []
    with sharding.use(ws.mesh):
        for (m, n, tokens), info in shapes.items():
            top = int(info.break_even) // multiple
            points = sorted({multiple * max(1, round(top * index / POINTS)) for index in range(1, POINTS + 1)})
            ms = _times(m, n, tokens, points)
            rows.append({"features_in": m, "features_out": n, "tokens": tokens, "ms": ms})
            pairs = ", ".join(f"{rank}: {value:.3f}" for rank, value in ms.items() if rank != "0")
            print(f"{m} x {n}, {tokens} rows: dense {ms['0']:.3f} ms; {pairs}", flush=True)
    path = ws.directory / "latency.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"schema": 1, "device": jax.devices()[0].device_kind, "layers": rows}
    files.write_atomically(path, json.dumps(table, indent=1) + "\n")
    print(f"\n{path}")


def _times(m: int, n: int, tokens: int, points: list[int]) -> dict[str, float]:
    """Median milliseconds by rank, "0" dense."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    x = draw(tokens, m)
    calls: dict[int, tuple[Any, Any]] = {0: (jax.jit(dense), {"kernel": draw(m, n)})}
    calls |= {rank: (jax.jit(low_rank), {"u": draw(m, rank), "v": draw(rank, n)}) for rank in points}
    times: dict[int, list[float]] = {rank: [] for rank in calls}
    for _ in range(ROUNDS + 2):
        for rank, (call, params) in calls.items():
            timed(times[rank], call, params, x)
    return {str(rank): stats.median(values[2:]) for rank, values in times.items()}
