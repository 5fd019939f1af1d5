"""The one evaluator: exact top-1 and top-5 counts over a data source, sharded, the ragged last batch masked."""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Float, Int

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import pipeline
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.sources import Source
from lraqvit_jax.devices import sharding
from lraqvit_jax.devices.sharding import Mesh


class Answers(NamedTuple):
    """What a model said of every labelled image: which it is of the source, its label, the class with the largest
    logit, and the probability that the model gives it."""

    image: Int[np.ndarray, " images"]
    label: Int[np.ndarray, " images"]
    answer: Int[np.ndarray, " images"]
    probability: Float[np.ndarray, " images"]


class Accuracy(NamedTuple):
    """Accuracies in percent over `images` labelled images, and the seconds that took. Against another model's logits
    also `kl`, KL(other || this) in nats, mean over the images, and `agreement`, the percentage of equal answers: both
    tell two good models apart on far fewer images than accuracies do. `skipped` are those that could not be read.
    `answers` has what became of each image."""

    top1: float
    top5: float
    images: int
    seconds: float
    kl: float = 0.0
    agreement: float = 0.0
    skipped: int = 0
    answers: Answers | None = None

    def __repr__(self) -> str:
        """One line; `answers` by their number."""
        fields = {name: value for name, value in self._asdict().items() if name != "answers"}
        return f"Accuracy({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


@functools.lru_cache(maxsize=32)
def _counter(model: nn.Module, mesh: Mesh) -> Any:
    """Compiles `(params, batch, other) -> (counts, divergence, (label, answer, probability, real))`.

    The columns are whole on every device, in the order of the batch.
    """

    def count(params: Any, batch: Any, other: jax.Array | None) -> tuple[jax.Array, jax.Array, Any]:
        logits: Any = model.apply({"params": params}, batch["image"])
        real = batch["mask"] & (batch["label"] >= 0)
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == batch["label"][:, None]
        counts = [jnp.sum(real & best[:, 0]), jnp.sum(real & best.any(1)), jnp.sum(real), jnp.sum(batch["mask"])]
        shares: Any = jnp.max(jax.nn.softmax(logits.astype(jnp.float32)), -1)
        answers = (batch["label"], jnp.argmax(logits, -1), shares, real)
        if other is None:
            return jnp.stack([*counts, 0]), jnp.zeros(()), answers
        log_other, log_this = jax.nn.log_softmax(other), jax.nn.log_softmax(logits)
        divergence = optax.losses.kl_divergence_with_log_targets(log_this, log_other)
        equal = jnp.argmax(other, -1) == jnp.argmax(logits, -1)
        return jnp.stack([*counts, jnp.sum(real & equal)]), jnp.sum(jnp.where(real, divergence, 0)), answers

    return jax.jit(count, out_shardings=sharding.replicated(mesh))


def accuracy(
    model: nn.Module,
    params: Any,
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    mesh: Mesh,
    other: Sequence[jax.Array] = (),
) -> Accuracy:
    """Measures a model on every labelled image of a source.

    Args:
        model: any form.
        params: on the mesh.
        source: examples; those with label -1 do not count.
        preprocess: of the model.
        batch_size: global.
        mesh: where it runs.
        other: what `logits` gave for a model to compare with, from the same images in the same batches.

    Raises:
        UserError: a label that is no class of the model.
    """
    started, answers = time.perf_counter(), list[Any]()
    classifier: Any = model
    if (labels := getattr(source, "labels", None)) is not None:
        check_labels(np.asarray(labels), np.arange(len(source)), classifier.num_classes)
    totals: Any = None
    for index, batch in enumerate(_batches(source, preprocess, batch_size, mesh, classifier.num_classes)):
        with sharding.use(mesh):
            *sums, columns = _counter(model, mesh)(params, batch, other[index] if other else None)
        answers.append(columns)
        before = totals
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        jax.block_until_ready(before)  # The bar tells of what is done, and one batch runs meanwhile.
    counts, divergence = jax.device_get(totals)
    first, fifth, images, read, equal = (int(value) for value in counts)
    share = 100 / max(1, images)
    seconds = time.perf_counter() - started
    kl, skipped = float(divergence) / max(1, images), len(source) - read
    return Accuracy(first * share, fifth * share, images, seconds, kl, equal * share, skipped, _answers(answers))


def check_labels(labels: Int[np.ndarray, " n"], images: Int[np.ndarray, " n"], num_classes: int) -> None:
    """UserError for the first label that is neither one of the classes, numbered from 0, nor -1, for none.

    Args:
        labels: some of a source.
        images: the number of each in the source.
        num_classes: of the model.
    """
    for row in np.flatnonzero((labels < -1) | (labels >= num_classes))[:1]:
        raise UserError(
            f"The evaluation image {images[row]} has the label {labels[row]}, and the model has {num_classes:,} "
            f"classes, 0 to {num_classes - 1}; correct the labels, or take a model of these classes."
        )


def _answers(batches: Sequence[Any]) -> Answers:
    """The rows of all batches that are labelled images. Batches hold the source in order: the place is the image."""
    label, answer, probability, real = (np.concatenate(jax.device_get(column)) for column in zip(*batches, strict=True))
    return Answers(
        np.flatnonzero(real).astype(np.int32),
        label[real].astype(np.int32),
        answer[real].astype(np.int32),
        probability[real].astype(np.float32),
    )


def logits(
    model: nn.Module, params: Any, source: Source, preprocess: Preprocess, *, batch_size: int, mesh: Mesh
) -> list[jax.Array]:
    """The logits of every batch, on the mesh; arguments as in `accuracy`."""
    run: Any = jax.jit(model.apply)
    batches = []
    for batch in _batches(source, preprocess, batch_size, mesh):
        with sharding.use(mesh):
            batches.append(run({"params": params}, batch["image"]))
    return batches


class Labelled(NamedTuple):
    """What a model says of every labelled image of a source: which it is, its label, and the logits."""

    image: Int[np.ndarray, " images"]
    label: Int[np.ndarray, " images"]
    logits: Float[np.ndarray, "images classes"]


def labelled(
    model: nn.Module, params: Any, source: Source, preprocess: Preprocess, *, batch_size: int, mesh: Mesh
) -> Labelled:
    """The logits of every labelled image, on the host of every process; arguments as in `accuracy`."""
    classifier: Any = model

    def answer(params: Any, batch: Any) -> tuple[Any, Any, Any]:
        logits = classifier.apply({"params": params}, batch["image"])
        return logits, batch["label"], batch["mask"] & (batch["label"] >= 0)

    run, rows = jax.jit(answer, out_shardings=sharding.replicated(mesh)), list[Any]()
    for batch in _batches(source, preprocess, batch_size, mesh, classifier.num_classes):
        with sharding.use(mesh):
            rows.append(jax.device_get(run(params, batch)))
    logits, label, real = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Labelled(np.flatnonzero(real), label[real], logits[real])


def _batches(
    source: Source, preprocess: Preprocess, batch_size: int, mesh: Mesh, num_classes: int | None = None
) -> Iterator[Any]:
    """Every batch on the mesh, as `pipeline.ordered` gives it; with `num_classes`, its labels are checked."""
    rows = sharding.rows_of_process(mesh, batch_size)
    batches = pipeline.ordered(source, preprocess, batch_size=batch_size, rows=rows)
    for number, batch in enumerate(console.progress(batches, "evaluate", "batch")):
        if num_classes is not None:
            real = batch["mask"]
            check_labels(batch["label"][real], (number * batch_size + rows)[real], num_classes)
        with sharding.use(mesh):
            placed = sharding.put_batch(batch, mesh)
        yield placed
