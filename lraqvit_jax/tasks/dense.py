"""What maps with a value for each pixel are measured by, as the literature on salient objects does.

Maps and masks are lists: photographs may have other sizes than each other.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lraqvit_jax.base.errors import UserError

BETA_SQUARED = 0.3
"""Weight of recall against precision (Achanta, Hemami, Estrada, Süsstrunk, CVPR 2009)."""
LEVELS = 256


def f_measures(
    maps: Sequence[Float[np.ndarray, "h w"]],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    beta_squared: float = BETA_SQUARED,
) -> Float[np.ndarray, " 256"]:
    """F = (1 + β²) P R / (β² P + R) at each of 256 thresholds, the highest first.

    A map is cut into whole numbers floor(255 x); pixels at or above the threshold are the object. Precision P and
    recall R are averaged over the photographs at each threshold, then F is taken of the averages (Borji, Cheng, Jiang,
    Li, IEEE TIP 2015). Where nothing is above a threshold, precision is 0.

    Args:
        maps: of the model, values in [0, 1].
        masks: what is the object; each of the shape of its map, none empty.
        beta_squared: β².

    Raises:
        UserError: no map, shapes that differ, values outside [0, 1], or a mask without an object.
    """
    precisions, recalls = [], []
    for number, (values, mask) in enumerate(_checked(maps, masks)):
        if not mask.any():
            raise UserError(f"Mask {number} has no object, so that its recall is not defined; leave it out.")
        levels = (values * (LEVELS - 1)).astype(np.int64)
        inside, outside = (
            np.bincount(levels[part], minlength=LEVELS)[::-1].cumsum() for part in (mask, ~mask)
        )  # at or above each threshold
        precisions.append(inside / np.maximum(inside + outside, 1))
        recalls.append(inside / mask.sum())
    precision, recall = np.mean(precisions, 0), np.mean(recalls, 0)
    return (1 + beta_squared) * precision * recall / np.maximum(beta_squared * precision + recall, 1e-12)


def max_f_measure(
    maps: Sequence[Float[np.ndarray, "h w"]],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    beta_squared: float = BETA_SQUARED,
) -> float:
    """The largest of `f_measures`, in [0, 1]."""
    return float(f_measures(maps, masks, beta_squared).max())


def mean_absolute_error(maps: Sequence[Float[np.ndarray, "h w"]], masks: Sequence[Bool[np.ndarray, "h w"]]) -> float:
    """The mean over photographs of the mean over pixels of |map - mask|, in [0, 1] (Perazzi, Krähenbühl, Pritch,
    Hornung, CVPR 2012).

    Raises:
        UserError: no map, shapes that differ, or values outside [0, 1].
    """
    return float(np.mean([np.abs(values - mask).mean() for values, mask in _checked(maps, masks)]))


def _checked(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each map, in its own precision, with its mask; UserError for what does not agree."""
    if len(maps) != len(masks) or not len(maps):
        raise UserError(f"There are {len(maps)} maps and {len(masks)} masks; give one mask for each map.")
    pairs = [(np.asarray(values), np.asarray(mask, bool)) for values, mask in zip(maps, masks, strict=True)]
    for number, (values, mask) in enumerate(pairs):
        if values.shape != mask.shape or not values.size:
            raise UserError(f"Map {number} is of shape {values.shape}, its mask of {mask.shape}; give both the same.")
        if not np.all((values >= 0) & (values <= 1)):
            raise UserError(f"Map {number} has values outside 0 to 1; scale it to shares.")
    return pairs
