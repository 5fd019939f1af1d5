"""The one input pipeline, on grain: deterministic, checkpointed with the state, split over hosts."""

from collections.abc import Iterator
from typing import Any, TypedDict

import grain
import numpy as np
from jaxtyping import Bool, Float, Int

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import skip
from lraqvit_jax.data.augment import Augment
from lraqvit_jax.data.mix import Mix
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.skip import Skipping
from lraqvit_jax.data.sources import Example, Source

READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class Batch(TypedDict):
    """One batch of this host: normalized images, labels (-1 where there is none), and which rows are real."""

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
    mix: Mix | None = None,
    process: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator:
    """Endless shuffled, augmented batches of `image` and `label`; where they are mixed, `other_label` and `share` too.

    The order, and every random choice of the augmentation and the mixing, follow from `seed` and the position alone;
    the iterator's `get_state` and `set_state` continue a run exactly where it was.

    Args:
        source: examples.
        preprocess: of the model to train.
        augment: from the source's image to that of the model's size.
        batch_size: global; each host reads its share.
        seed: of the order, the augmentation and the mixing.
        mix: see `lraqvit_jax.data.mix`; each host mixes its own rows, all with the same share. None is off.
        process: (index, count) of this host.
    """
    index, count = process

    def prepare(example: Example, rng: np.random.Generator) -> dict[str, Any]:
        image = augment(example["image"], preprocess, rng)
        return {"image": preprocess.normalize(image), "label": np.int32(example["label"])}

    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    batches = examples.random_map(prepare)[index::count].batch(batch_size // count, drop_remainder=True)
    if mix:
        batches = batches.random_map(mix)
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
    process: tuple[int, int] = (0, 1),
) -> Ordered:
    """The images once, in order; the last batch is padded, with mask False on the padding and on images skipped as bad.

    Every host yields the same number of batches, so that collective operations match.

    Args:
        source: examples.
        preprocess: of the model.
        batch_size: global; each host reads its share.
        indices: which examples; None is all of them.
        process: (index, count) of this host.

    Raises:
        UserError: at the end, where more than half of this host's images were bad.
    """
    process_index, count = process
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices)
    local, rows = chosen[process_index::count], batch_size // count
    steps = -(-len(chosen) // batch_size)
    order = np.resize(local if len(local) else chosen[:1], steps * rows)

    def prepare(position: int) -> dict[str, Any]:
        index = int(order[position])
        example = source.at(index) if isinstance(source, Skipping) else source[index]
        if example is None:
            nothing = np.zeros((preprocess.size, preprocess.size, 3), np.float32)
            return {"image": nothing, "label": np.int32(-1), "mask": np.bool_(False)}
        return {
            "image": preprocess(example["image"]),
            "label": np.int32(example["label"]),
            "mask": np.bool_(position < len(local)),
        }

    positions = grain.MapDataset.range(len(order)).map(prepare).batch(rows)
    batches = iter(positions.to_iter_dataset(READ))
    if isinstance(source, Skipping):
        batches = _enough(batches, source, len(local))
    return Ordered(batches, steps)


def _enough(batches: Iterator[Batch], source: Skipping, images: int) -> Iterator[Batch]:
    """The batches; UserError behind the last where fewer than half of the images were real."""
    real = 0
    for batch in batches:
        real += int(batch["mask"].sum())
        yield batch
    if 2 * real < images:
        raise UserError(skip.too_many(source.role, images - real, images, source.listing))
