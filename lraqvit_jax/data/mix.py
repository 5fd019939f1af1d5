"""Mixup and CutMix: every image of a batch mixed with another, its label with the other's."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lraqvit_jax.options.training import Mix

Mixer = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def parse(options: Mix) -> Mixer | None:
    """Builds what the config's `mix` describes; None where it is off.

    Args:
        options: parameters of the Beta distributions, and the probability of CutMix where both are on.

    Returns:
        `mix(batch, rng)`, which mixes `image` with the batch in reverse order and adds two keys: `other_label` (int32,
        the reversed labels) and `share` (float32, the weight of `label`, the same for every image of a batch).
    """
    mixup, cutmix, switch = options.mixup, options.cutmix, options.switch
    if not mixup and not cutmix:
        return None
    return functools.partial(_mix, mixup=mixup, cutmix=cutmix, switch=switch if mixup and cutmix else bool(cutmix))


def _mix(
    batch: dict[str, Any], rng: np.random.Generator, *, mixup: float, cutmix: float, switch: float
) -> dict[str, Any]:
    image, label = batch["image"], batch["label"]
    if rng.random() < switch:
        image, share = _cutmix(image, cutmix, rng)
    else:
        image, share = _mixup(image, mixup, rng)
    return {**batch, "image": image, "other_label": label[::-1].copy(), "share": np.full(len(label), share)}


def _mixup(image: np.ndarray, alpha: float, rng: np.random.Generator) -> tuple[np.ndarray, np.float32]:
    """Zhang et al. 2018: `share * image + (1 - share) * other`, share ~ Beta(alpha, alpha)."""
    share = np.float32(rng.beta(alpha, alpha))
    return share * image + (1 - share) * image[::-1], share


def _cutmix(image: np.ndarray, alpha: float, rng: np.random.Generator) -> tuple[np.ndarray, np.float32]:
    """Yun et al. 2019: pastes a box of the other image, of area 1 - Beta(alpha, alpha) before it is cut at the edges.

    The share is that of the pixels that stay.
    """
    size = image.shape[1:3]
    side = np.sqrt(1 - rng.beta(alpha, alpha))
    half = [int(side * length) // 2 for length in size]
    centre = rng.integers(0, size)
    top, left = np.maximum(0, centre - half)
    bottom, right = np.minimum(size, centre + half)
    mixed = image.copy()
    mixed[:, top:bottom, left:right] = image[::-1, top:bottom, left:right]
    return mixed, np.float32(1 - (bottom - top) * (right - left) / (size[0] * size[1]))
