"""The one input pipeline, on grain: deterministic, checkpointed with the state, split over processes.

What a global batch holds follows from the source, the seed and its number alone. A process names the rows of it that it
supplies, and several may supply the same ones: `devices.sharding.rows_of_process` says which.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import grain
import numpy as np
from jaxtyping import Bool, Float, Int

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import skip
from lraqvit_jax.data.augment import Augment
from lraqvit_jax.data.mix import Mixer
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.skip import Skipping
from lraqvit_jax.data.sources import Example, Source

READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class _Rows(grain.MapDataset[Any]):
    """Of every `batch_size` examples in turn, those at `rows`."""

    def __init__(self, examples: grain.MapDataset[Any], rows: np.ndarray, batch_size: int) -> None:
        super().__init__(examples)
        self._examples, self._rows, self._batch_size = examples, rows.tolist(), batch_size

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        batch, place = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + self._rows[place]]


class Batch(TypedDict):
    """What a process supplies of a batch: normalized images, labels (-1 where there is none), which rows are real."""

    image: Float[np.ndarray, "batch size size 3"]
    label: Int[np.ndarray, " batch"]
    mask: Bool[np.ndarray, " batch"]


def training(
    source: Source,
    preprocess: Preprocess,
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    mix: Mixer | None = None,
    rows: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """Endless shuffled, augmented batches of `image` and `label`; where they are mixed, `other_label` and `share` too.

    The order, and every random choice of the augmentation and the mixing, follow from `seed` and the position alone;
    the iterator's `get_state` and `set_state` continue a run exactly where it was.

    Args:
        source: examples.
        preprocess: of the model to train.
        augment: from the source's image to that of the model's size.
        batch_size: global.
        seed: of the order, the augmentation and the mixing.
        mix: of the global batch, see `lraqvit_jax.data.mix`; a process reads also the rows that its own are mixed with.
            None is off.
        rows: of each global batch, sorted, that this process supplies; None is all.
    """
    rows = np.arange(batch_size) if rows is None else rows
    read = np.union1d(rows, batch_size - 1 - rows) if mix else rows

    def prepare(example: Example, rng: np.random.Generator) -> dict[str, Any]:
        image = augment(example["image"], preprocess, rng)
        return {"image": preprocess.normalize(image), "label": np.int32(example["label"])}

    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    batches = _Rows(examples.random_map(prepare), read, batch_size).batch(len(read), drop_remainder=True)
    if mix:
        batches = batches.random_map(mix)
    if len(read) > len(rows):
        places = np.searchsorted(read, rows)
        batches = batches.map(lambda batch: {name: value[places] for name, value in batch.items()})
    return iter(batches.to_iter_dataset(READ))


def images(count: int, seed: int, batch_size: int, step: int) -> list[int]:
    """Which of `count` images the training batch of a step, counted from 1, has."""
    order = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
    return [int(order[(step - 1) * batch_size + row]) for row in range(batch_size)]


class Ordered(Iterator[Batch]):
    """Batches one after another, and how many there are, for whoever says how long it will take."""

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __next__(self) -> Batch:
        return next(self._batches)


def ordered(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    indices: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> Ordered:
    """The images once, in order; the last batch is padded, with mask False on the padding and on images skipped as bad.

    Every process yields the same number of batches, so that collective operations match.

    Args:
        source: examples.
        preprocess: of the model.
        batch_size: global.
        indices: which examples; None is all of them.
        rows: of each global batch, sorted, that this process supplies; None is all.

    Raises:
        UserError: at the end, where more than half of the images that this process reads were bad.
    """
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices)
    rows = np.arange(batch_size) if rows is None else rows
    steps = -(-len(chosen) // batch_size)

    def prepare(position: int) -> dict[str, Any]:
        index = int(chosen[position % len(chosen)])
        example = source.at(index) if isinstance(source, Skipping) else source[index]
        if example is None:
            nothing = np.zeros((preprocess.size, preprocess.size, 3), np.float32)
            return {"image": nothing, "label": np.int32(-1), "mask": np.bool_(False)}
        return {
            "image": preprocess(example["image"]),
            "label": np.int32(example["label"]),
            "mask": np.bool_(position < len(chosen)),
        }

    positions = _Rows(grain.MapDataset.range(steps * batch_size), rows, batch_size)
    batches = iter(positions.map(prepare).batch(len(rows)).to_iter_dataset(READ))
    if isinstance(source, Skipping):
        real = np.arange(steps)[:, None] * batch_size + rows < len(chosen)
        batches = _enough(batches, source, int(real.sum()))
    return Ordered(batches, steps)


def _enough(batches: Iterator[Batch], source: Skipping, images: int) -> Iterator[Batch]:
    """The batches; UserError behind the last where fewer than half of the images were real."""
    real = 0
    for batch in batches:
        real += int(batch["mask"].sum())
        yield batch
    if 2 * real < images:
        raise UserError(skip.too_many(source.role, images - real, images, source.listing))
