"""Random weights and images by seed, for every comparison with PyTorch. NumPy only: golden files hold no weights."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

STREAM = r"patch_embed|_token|pos_embed|position_embed|embeddings\.norm|attn\.proj|o_proj|fc2|reduction"
"""Tensors, in timm's and transformers' names, that write to the residual stream and nowhere else."""


def weights(shapes: Mapping[str, Sequence[int]], seed: int, stream: float = 1.0) -> dict[str, np.ndarray]:
    """Float32 tensors, drawn in the order of their names; every gain, bias, scale and position bias differs from its
    initial value.

    Args:
        shapes: by name, in PyTorch's layout.
        seed: of the generator.
        stream: factor of what writes to the residual stream. Where it is small, so is the variance that every LayerNorm
            sees (its square), and epsilon shows in the logits.
    """
    rng = np.random.default_rng(seed)
    return {
        name: (_draw(rng, name, tuple(shapes[name])) * (stream if re.search(STREAM, name) else 1)).astype(np.float32)
        for name in sorted(shapes)
    }


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = rng.standard_normal(shape)
    if len(shape) == 1 and name.endswith("weight"):  # the gain of a LayerNorm
        return 1 + 0.2 * normal
    if len(shape) == 1:  # a bias, or LayerScale
        return normal if name.endswith("gamma") else 0.2 * normal
    if name.endswith("relative_position_bias_table"):
        return normal
    if len(shape) == 3:  # class token, position embedding
        return 0.5 * normal
    gain = 4 if re.search(r"head|classifier", name) else 1  # logits as wide as those of trained models
    return gain * normal * np.prod(shape[1:]) ** -0.5


def images(count: int, size: int, seed: int) -> np.ndarray:
    """Normalized images (count, size, size, 3), float32."""
    return np.random.default_rng(seed).standard_normal((count, size, size, 3)).astype(np.float32)


def total(arrays: Iterable[np.ndarray]) -> float:
    """Sum of all magnitudes: tells whether NumPy still draws the same numbers."""
    return float(sum(np.abs(array).sum(dtype=np.float64) for array in arrays))
