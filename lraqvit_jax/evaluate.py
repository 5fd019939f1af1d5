"""The one evaluator: exact top-1 and top-5 counts over a data source, sharded, the ragged last batch masked."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from tqdm import tqdm

from lraqvit_jax import sharding
from lraqvit_jax.data import pipeline
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.sources import Source


class Accuracy(NamedTuple):
    """Accuracies in percent over `images` labelled images, and the seconds that took."""

    top1: float
    top5: float
    images: int
    seconds: float


@functools.lru_cache(maxsize=32)
def _counter(model: nn.Module) -> Any:
    @jax.jit
    def count(params: Any, batch: Any) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch["image"])
        real = batch["mask"] & (batch["label"] >= 0)
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == batch["label"][:, None]
        return jnp.stack([jnp.sum(real & best[:, 0]), jnp.sum(real & best.any(1)), jnp.sum(real)])

    return count


def accuracy(
    model: nn.Module, params: Any, source: Source, preprocess: Preprocess, *, batch_size: int, mesh: Mesh
) -> Accuracy:
    """Measures a model on every labelled image of a source.

    Args:
        model: any form.
        params: on the mesh.
        source: examples; those with label -1 do not count.
        preprocess: of the model.
        batch_size: global.
        mesh: where it runs.
    """
    started, totals = time.perf_counter(), 0
    process = (jax.process_index(), jax.process_count())
    batches = pipeline.ordered(source, preprocess, batch_size=batch_size, process=process)
    with sharding.use(mesh):
        for batch in tqdm(batches, desc="evaluate", unit="batch", leave=False, delay=2, disable=process[0] > 0):
            totals = totals + _counter(model)(params, sharding.put_batch(batch, mesh))
    first, fifth, count = (int(value) for value in jax.device_get(totals))
    share = 100 / max(1, count)
    return Accuracy(first * share, fifth * share, count, time.perf_counter() - started)
