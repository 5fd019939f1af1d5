"""Swin transformers (Liu et al. 2021), with timm's parameter layout.

Every linear layer of a block sees (batch, tokens, dim) with the tokens in the order of the (shifted) image, not of the
windows: a layer is a product over features alone, so this changes nothing, and a token position means one place.

Where a window does not tile the feature map, the map is padded with zeros on the right and below and then shifted, as
the authors' detection code and transformers do it. (timm shifts first; the two agree where windows tile.)
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from lraqvit_jax import models
from lraqvit_jax.models.attention import projections
from lraqvit_jax.models.linear import Linear, LinearOptions
from lraqvit_jax.models.vit import MLP_RATIO, Mlp, layer_norm, patches, show
from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.quant import attention

NORM_EPS = 1e-5
BLOCKED = -100.0
"""Added to the attention between tokens of different regions of a shifted map, as in the authors' code."""

VARIANTS: dict[str, dict[str, Any]] = {
    "swin_pico": {"dim": 16, "depths": (2, 2), "heads": (2, 4), "patch_size": 1, "window_size": 4},
    "swin_nano": {"dim": 32, "depths": (2, 2, 2), "heads": (2, 4, 8), "patch_size": 2, "window_size": 4},
    "swin_tiny": {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "swin_small": {"dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "swin_base": {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
    "swin_large": {"dim": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)},
}
for _name, _fields in VARIANTS.items():
    VARIANTS[_name] = {"patch_size": 4, "window_size": 7, "gelu": "exact", "mlp_dim": 0, **_fields}


@functools.cache
def bias_index(window: int) -> Int[np.ndarray, "tokens tokens"]:
    """For each pair of tokens of a window, the row of the relative position bias table: (2 w - 1) dy + dx, from 0."""
    y, x = np.divmod(np.arange(window * window), window)
    dy, dx = (axis[:, None] - axis[None] + window - 1 for axis in (y, x))
    return (2 * window - 1) * dy + dx


@functools.cache
def attention_mask(side: int, window: int, shift: int) -> Float[np.ndarray, "windows tokens tokens"]:
    """0 between tokens that were neighbours before the cyclic shift of a side x side map, BLOCKED between others."""
    place = np.arange(side)
    region = (place >= side - window).astype(int) + (place >= side - shift)
    regions = _windows((3 * region[:, None] + region[None])[None, ..., None], window)[0, ..., 0]
    return np.where(regions[:, :, None] == regions[:, None], np.float32(0), np.float32(BLOCKED))


def _windows(x: Any, window: int) -> Any:
    """(batch, side, side, dim) -> (batch, windows, tokens, dim)."""
    batch, side, _, dim = x.shape
    count = side // window
    x = x.reshape(batch, count, window, count, window, dim).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, count * count, window * window, dim)


def _image(x: Any, side: int, window: int) -> Any:
    """The inverse of `_windows`, with flat tokens: (batch, side * side, dim)."""
    batch, count = x.shape[0], side // window
    x = x.reshape(batch, count, count, window, window, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, side * side, -1)


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position. Softmax in float32, products as
    the plan says of qkv, or of query."""

    side: int
    window: int
    shift: int
    heads: int
    options: LinearOptions

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        dim, arithmetic = x.shape[-1], self.options.arithmetic
        parts, layer = projections(x, self.heads, self.options, self.path)
        query, key, value = (self._by_window(part) for part in parts)
        scaled = query * (dim // self.heads) ** -0.5
        logits = attention.logits(scaled, key, layer, arithmetic).astype(jnp.float32)
        boxed: Any = nn.with_logical_partitioning(nn.initializers.truncated_normal(0.02), (None, "heads"))
        table: Any = self.param("relative_position_bias_table", boxed, ((2 * self.window - 1) ** 2, self.heads))
        logits = logits + table[bias_index(self.window)].transpose(2, 0, 1)
        if self.shift:
            logits = logits + attention_mask(self.side, self.window, self.shift)[:, None]
        show(self, logits)
        weights = jax.nn.softmax(logits).astype(value.dtype)
        mixed = attention.mix(weights, value, layer, arithmetic).astype(value.dtype)
        mixed = _image(mixed.reshape(*mixed.shape[:3], -1), self.side, self.window)
        return Linear(dim, self.options, ("heads", "embed"), name="proj")(mixed)

    def _by_window(self, part: Float[Array, "batch tokens heads k"]) -> Float[Array, "batch windows inside heads k"]:
        windows = _windows(part.reshape(part.shape[0], self.side, self.side, -1), self.window)
        return windows.reshape(*windows.shape[:3], *part.shape[2:])


class Block(nn.Module):
    """Pre-norm block on a side x side feature map, its windows shifted by `shift`."""

    side: int
    window: int
    shift: int
    heads: int
    gelu: str
    options: LinearOptions
    units: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        (batch, _, dim), side = x.shape, self.side
        padded = side + -side % self.window
        y = layer_norm("norm1", NORM_EPS)(x).astype(self.options.dtype).reshape(batch, side, side, dim)
        if padded > side:
            y = jnp.pad(y, ((0, 0), (0, padded - side), (0, padded - side), (0, 0)))
        y = jnp.roll(y, (-self.shift, -self.shift), (1, 2)).reshape(batch, padded * padded, dim)
        y = WindowAttention(padded, self.window, self.shift, self.heads, self.options, name="attn")(y)
        y = jnp.roll(y.reshape(batch, padded, padded, dim), (self.shift, self.shift), (1, 2))
        x = x + y[:, :side, :side].reshape(batch, side * side, dim)
        y = layer_norm("norm2", NORM_EPS)(x).astype(self.options.dtype)
        x = x + Mlp(self.options, self.gelu, self.units, name="mlp")(y)
        return nn.with_logical_constraint(x, ("batch", "tokens", None))


class PatchMerging(nn.Module):
    """Joins 2 x 2 tokens (column by column) and halves their features; no bias. An odd side is padded with zeros."""

    side: int
    options: LinearOptions

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch quarter double"]:
        (batch, _, dim), side = x.shape, self.side
        x, odd, half = x.reshape(batch, side, side, dim), side % 2, (side + 1) // 2
        x = jnp.pad(x, ((0, 0), (0, odd), (0, odd), (0, 0))).reshape(batch, half, 2, half, 2, dim)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, half * half, 4 * dim)
        x = layer_norm("norm", NORM_EPS)(x).astype(self.options.dtype)
        return Linear(2 * dim, self.options, ("patch", "embed"), use_bias=False, name="reduction")(x)


class Stage(nn.Module):
    """Blocks on one resolution. The windows of every second are shifted.

    `side` is that of the stage's own feature map, `before` that of the map it merges into it; 0 merges nothing.
    """

    side: int
    before: int
    window: int
    depth: int
    heads: int
    gelu: str
    options: LinearOptions
    units: int = 0

    @nn.nowrap
    def chain(self, block: type[nn.Module] = Block) -> list[tuple[str, nn.Module]]:
        """Patch merging, where there is one, and the blocks, by name."""
        window, shift = _window(self.side, self.window)
        first: list[Any] = [("downsample", PatchMerging(self.before, self.options))] if self.before else []
        fields = (self.heads, self.gelu, self.options, self.units)
        return first + [
            (f"blocks_{index}", block(self.side, window, shift * (index % 2), *fields)) for index in range(self.depth)
        ]

    def setup(self) -> None:
        parts = [part for _, part in self.chain(models.rematerialized(Block, self.options))]
        if self.before:
            self.downsample = parts.pop(0)
        self.blocks = parts

    def merge(self, x: Float[Array, "batch before dim"]) -> Float[Array, "batch tokens out"]:
        return self.downsample(x) if self.before else x

    def __call__(self, x: Float[Array, "batch before dim"]) -> list[Float[Array, "batch tokens out"]]:
        """The output of every block."""
        features = [self.merge(x)]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features[1:]

    def forced(self, inputs: Sequence[Float[Array, "batch _ _"]]) -> list[Float[Array, "batch tokens out"]]:
        """The output of every block, each on its own given input; the first input is that of the patch merging."""
        return [block(x) for block, x in zip(self.blocks, [self.merge(inputs[0]), *inputs[1:]], strict=True)]


class Swin(nn.Module):
    """A Swin on the mean of its tokens, a classifier or, with `num_classes` 0, what gives that mean as features.

    `apply({"params": params}, images)` takes normalized float images (batch, size, size, 3) and gives float32 logits
    (batch, num_classes). `mlp_dim` is the hidden units of an MLP in the first stage, in each later one
    twice that; 0 are `MLP_RATIO` for each feature.
    """

    image_size: int
    patch_size: int
    window_size: int
    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    gelu: str
    num_classes: int
    options: LinearOptions
    mlp_dim: int = 0

    def setup(self) -> None:
        self.patch_embed = Linear(self.dim, self.options, ("patch", "embed"))
        self.patch_norm = layer_norm(epsilon=NORM_EPS)
        self.layers = self._stages()
        self.norm = layer_norm(epsilon=NORM_EPS)
        if self.num_classes:
            self.head = Linear(self.num_classes, self.options, ("embed", "classes"))

    @property
    def width(self) -> int:
        """Features that the head reads, or that are the model's output where there is none."""
        return self.dim * 2 ** (len(self.depths) - 1)

    @nn.nowrap
    def _stages(self) -> list[Stage]:
        sides = _sides(self.image_size // self.patch_size, len(self.depths))
        return [
            Stage(side, before, self.window_size, depth, heads, self.gelu, self.options, self.mlp_dim * 2**index)
            for index, (side, before, depth, heads) in enumerate(
                zip(sides, [0, *sides], self.depths, self.heads, strict=False)
            )
        ]

    @nn.nowrap
    def chain(self) -> list[tuple[str, nn.Module]]:
        """Everything that maps tokens to tokens, in order, with the path of its parameters."""
        return [
            (f"layers_{index}/{name}", part)
            for index, stage in enumerate(self._stages())
            for name, part in stage.chain()
        ]

    def embed(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch tokens dim"]:
        """Patches, normalized."""
        x = self.patch_embed(patches(images, self.patch_size).astype(self.options.dtype))
        return nn.with_logical_constraint(self.patch_norm(x).astype(x.dtype), ("batch", "tokens", None))

    def __call__(self, images: Float[Array, "batch size size 3"], return_features: bool = False) -> Any:
        """Logits, and with `return_features` also the list of every block's output (batch, tokens, dim)."""
        features = [self.embed(images)]
        for stage in self.layers:
            features += stage(features[-1])
        logits = self.classify(features[-1])
        return (logits, features[1:]) if return_features else logits

    def classify(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch classes"]:
        """Logits from the last block's output, or features."""
        pooled = jnp.mean(self.norm(x), axis=1).astype(self.options.dtype)
        return (self.head(pooled) if self.num_classes else pooled).astype(jnp.float32)

    def forced(
        self, images: Float[Array, "batch size size 3"], features: Sequence[Float[Array, "batch tokens dim"]]
    ) -> list[Float[Array, "batch tokens dim"]]:
        """Outputs of every block where block l > 0 is fed the given output of block l - 1 (teacher forcing)."""
        inputs = [self.embed(images), *(feature.astype(self.options.dtype) for feature in features[:-1])]
        outputs: list[Any] = []
        for stage in self.layers:
            outputs += stage.forced(inputs[len(outputs) : len(outputs) + stage.depth])
        return outputs


def _sides(side: int, stages: int) -> list[int]:
    """Side of the feature map of every stage; each is half of the one before, rounded up."""
    sides = [side]
    while len(sides) < stages:
        sides.append((sides[-1] + 1) // 2)
    return sides


def _window(side: int, window: int) -> tuple[int, int]:
    """The window and its shift on a map of this side: a map no larger than a window is one window, unshifted."""
    return (side, 0) if side <= window else (window, window // 2)


def create(name: str, *, num_classes: int, image_size: int, options: LinearOptions) -> Swin:
    values = models.fields(VARIANTS, name, image_size)
    return Swin(image_size=image_size, num_classes=num_classes, options=options, **values)


def spec(name: str, *, num_classes: int, image_size: int) -> models.ModelSpec:
    values = models.fields(VARIANTS, name, image_size)
    dim, patch, depths = values["dim"], values["patch_size"], values["depths"]
    sides = _sides(image_size // patch, len(depths))
    layers = [LinearInfo("patch_embed", 3 * patch**2, dim, sides[0] ** 2, "embed")]
    for stage, (side, depth, heads) in enumerate(zip(sides, depths, values["heads"], strict=True)):
        where = f"layers_{stage}"
        if stage:
            reduction = f"{where}/downsample"
            layers.append(
                LinearInfo(f"{reduction}/reduction", 4 * dim, 2 * dim, side**2, "embed", f"{reduction}/norm", False)
            )
            dim *= 2
        window, _ = _window(side, values["window_size"])
        padding = -side % window
        tokens, units = (side + padding) ** 2, values["mlp_dim"] * 2**stage or MLP_RATIO * dim
        for index in range(depth):
            block = f"{where}/blocks_{index}"
            layers += [
                LinearInfo(
                    f"{block}/attn/qkv", dim, 3 * dim, tokens, "attention", f"{block}/norm1", True, padding > 0, heads
                ),
                LinearInfo(f"{block}/attn/proj", dim, dim, tokens, "attention", heads=heads),
                LinearInfo(f"{block}/mlp/fc1", dim, units, side**2, "mlp", f"{block}/norm2"),
                LinearInfo(f"{block}/mlp/fc2", units, dim, side**2, "mlp"),
            ]
    layers += [LinearInfo("head", dim, num_classes, 1, "head")] if num_classes else []
    return models.ModelSpec(tuple(layers), sum(depths), NORM_EPS, values["gelu"])
