"""ViT and DeiT encoders (Dosovitskiy et al. 2021; Touvron et al. 2021), with timm's parameter layout."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lraqvit_jax import models
from lraqvit_jax.models.attention import projections
from lraqvit_jax.models.linear import Linear, LinearOptions
from lraqvit_jax.plan.records import LinearInfo
from lraqvit_jax.quant import attention

NORM_EPS = 1e-6
QUICK = 1.702
"""Of the sigmoid that approximates GELU in CLIP's models."""
MLP_RATIO = 4
"""Hidden units of an MLP for each feature, where `mlp_dim` is 0."""
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"patch_size": 16, "dim": 192, "depth": 12, "heads": 3},
    "small": {"patch_size": 16, "dim": 384, "depth": 12, "heads": 6},
    "base": {"patch_size": 16, "dim": 768, "depth": 12, "heads": 12},
    "large": {"patch_size": 16, "dim": 1024, "depth": 24, "heads": 16},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "vit_pico": {"patch_size": 4, "dim": 32, "depth": 2, "heads": 2},
    "vit_nano": {"patch_size": 7, "dim": 128, "depth": 4, "heads": 4},
}
for _size, _fields in _SIZES.items():
    VARIANTS |= {f"{family}_{_size}": _fields for family in ("vit", "deit")}
    VARIANTS[f"deit_{_size}_distilled"] = {**_fields, "distilled": True}
    VARIANTS[f"deit3_{_size}"] = {**_fields, "layer_scale": True}
for _fields in VARIANTS.values():
    _fields |= {"gelu": "exact", "norm_eps": NORM_EPS, "pool": "token", "mlp_dim": 0}


def layer_norm(name: str | None = None, epsilon: float = NORM_EPS) -> nn.LayerNorm:
    """LayerNorm in float32, its scale and bias sharded like the features. No name in `setup`, where it has one."""
    axes = ("embed",)
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=jnp.float32,
        name=name,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes),
    )


def show(module: nn.Module, logits: Float[Array, "... heads tokens tokens"]) -> None:
    """Leaves the attention map, before its softmax, in the collection "attention" for whoever distills it."""
    if module.is_mutable_collection("attention"):
        module.sow("attention", "logits", logits, reduce_fn=lambda _, new: new, init_fn=lambda: None)


class Attention(nn.Module):
    """Multi-head self-attention. Softmax in float32, products as the plan says of qkv, or of query."""

    heads: int
    options: LinearOptions

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        batch, tokens, dim = x.shape
        arithmetic = self.options.arithmetic
        (query, key, value), layer = projections(x, self.heads, self.options, self.path)
        logits = attention.logits(query * (dim // self.heads) ** -0.5, key, layer, arithmetic)
        show(self, logits)
        weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)
        mixed = attention.mix(weights, value, layer, arithmetic).astype(value.dtype).reshape(batch, tokens, -1)
        return Linear(dim, self.options, ("heads", "embed"), name="proj")(mixed)


def patches(images: Float[Array, "batch size size 3"], p: int) -> Float[Array, "batch tokens pixels"]:
    """Cuts images into squares of side p, each flat in the order row, column, channel."""
    batch, side = images.shape[0], images.shape[1] // p
    cut = images.reshape(batch, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, side * side, p * p * 3)


def gelu(x: Float[Array, "..."], kind: str) -> Float[Array, "..."]:
    """GELU, "exact", or its approximation by "tanh" or, "quick", by a sigmoid.

    By erf: XLA's CPU backend takes twice as long for Flax's form, with erfc, which differs by 5e-7 at most.
    """
    if kind == "quick":
        return x * nn.sigmoid(QUICK * x)
    return nn.gelu(x) if kind == "tanh" else 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class Mlp(nn.Module):
    """fc1, GELU (see `gelu`), fc2, with as many hidden units between them; 0 are `MLP_RATIO` for each feature."""

    options: LinearOptions
    gelu: str = "exact"
    units: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        dim = x.shape[-1]
        width = self.options.of("/".join((*self.path, "fc1"))).width or self.units or MLP_RATIO * dim
        hidden = Linear(width, self.options, ("embed", "mlp"), name="fc1")(x)
        return Linear(dim, self.options, ("mlp", "embed"), name="fc2")(gelu(hidden, self.gelu))


class Block(nn.Module):
    """Pre-norm encoder block. With `layer_scale`, each branch is multiplied by a vector (Touvron et al. 2021b)."""

    heads: int
    options: LinearOptions
    layer_scale: bool = False
    gelu: str = "exact"
    norm_eps: float = NORM_EPS
    mlp_dim: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        dtype = self.options.dtype
        branch = Attention(self.heads, self.options, name="attn")(layer_norm("norm1", self.norm_eps)(x).astype(dtype))
        x = x + self._scaled("ls1", branch)
        branch = Mlp(self.options, self.gelu, self.mlp_dim, name="mlp")(
            layer_norm("norm2", self.norm_eps)(x).astype(dtype)
        )
        x = x + self._scaled("ls2", branch)
        return nn.with_logical_constraint(x, ("batch", "tokens", None))

    def _scaled(self, name: str, branch: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        if not self.layer_scale:
            return branch
        boxed: Any = nn.with_logical_partitioning(nn.initializers.constant(1e-5), ("embed",))
        gamma: Any = self.param(f"{name}_gamma", boxed, (branch.shape[-1],))
        return branch * gamma.astype(branch.dtype)


class ViT(nn.Module):
    """A ViT/DeiT classifier.

    `pool` says on what: "token", the class token, in a distilled DeiT also the distillation token, the two logits
    averaged; "first", the class token alone; "avg", the mean of the patches' tokens, which the last LayerNorm then sees
    (timm's fc_norm); "normavg", the mean of the tokens that it has seen. `mlp_dim` is the hidden units of an MLP, 0
    `MLP_RATIO` for each feature.

    `apply({"params": params}, images)` takes normalized float images (batch, size, size, 3) and gives float32 logits
    (batch, num_classes).
    """

    image_size: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    num_classes: int
    options: LinearOptions
    distilled: bool = False
    layer_scale: bool = False
    gelu: str = "exact"
    norm_eps: float = NORM_EPS
    pool: str = "token"
    mlp_dim: int = 0

    def setup(self) -> None:
        normal = nn.initializers.truncated_normal(0.02)
        tokens = (self.image_size // self.patch_size) ** 2 + 1 + self.distilled
        self.patch_embed = Linear(self.dim, self.options, ("patch", "embed"))
        boxed: Any = nn.with_logical_partitioning(normal, (None, None, "embed"))
        self.cls_token: Any = self.param("cls_token", boxed, (1, 1, self.dim))
        if self.distilled:
            self.dist_token: Any = self.param("dist_token", boxed, (1, 1, self.dim))
            if self.two_heads:
                self.head_dist = Linear(self.num_classes, self.options, ("embed", "classes"))
        self.pos_embed: Any = self.param("pos_embed", boxed, (1, tokens, self.dim))
        self.blocks = [block for _, block in self.chain(models.rematerialized(Block, self.options))]
        self.norm = layer_norm("norm", self.norm_eps)
        self.head = Linear(self.num_classes, self.options, ("embed", "classes"))

    @property
    def two_heads(self) -> bool:
        return self.distilled and self.pool == "token"

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return 1 + self.distilled

    @nn.nowrap
    def chain(self, block: type[nn.Module] = Block) -> list[tuple[str, nn.Module]]:
        """Everything that maps tokens to tokens, in order, with the path of its parameters."""
        fields = (self.heads, self.options, self.layer_scale, self.gelu, self.norm_eps, self.mlp_dim)
        return [(f"blocks_{index}", block(*fields)) for index in range(self.depth)]

    def embed(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch tokens dim"]:
        """Patches, class token, position embedding."""
        batch = images.shape[0]
        x = self.patch_embed(patches(images, self.patch_size).astype(self.options.dtype))
        tokens = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        prefix = [jnp.broadcast_to(token.astype(x.dtype), (batch, 1, self.dim)) for token in tokens]
        x = jnp.concatenate([*prefix, x], axis=1) + self.pos_embed.astype(x.dtype)
        return nn.with_logical_constraint(x, ("batch", "tokens", None))

    def __call__(self, images: Float[Array, "batch size size 3"], return_features: bool = False) -> Any:
        """Logits, and with `return_features` also the list of every block's output (batch, tokens, dim)."""
        x = self.embed(images)
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        logits = self.classify(x)
        return (logits, features) if return_features else logits

    def classify(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch classes"]:
        """Logits from the last block's output."""
        if self.pool == "avg":
            x = jnp.mean(x[:, self.prefix :].astype(jnp.float32), axis=1, keepdims=True)
        x = self.norm(x)
        if self.pool == "normavg":
            x = jnp.mean(x[:, self.prefix :], axis=1, keepdims=True)
        x = x.astype(self.options.dtype)
        logits = self.head(x[:, 0]).astype(jnp.float32)
        if self.two_heads:
            logits = (logits + self.head_dist(x[:, 1]).astype(jnp.float32)) / 2
        return logits

    def forced(
        self, images: Float[Array, "batch size size 3"], features: Sequence[Float[Array, "batch tokens dim"]]
    ) -> list[Float[Array, "batch tokens dim"]]:
        """Outputs of every block where block l > 0 is fed the given output of block l - 1 (teacher forcing)."""
        inputs = [self.embed(images), *(feature.astype(self.options.dtype) for feature in features[:-1])]
        return [block(x) for block, x in zip(self.blocks, inputs, strict=True)]


def create(name: str, *, num_classes: int, image_size: int, options: LinearOptions) -> ViT:
    values = models.fields(VARIANTS, name, image_size)
    return ViT(image_size=image_size, num_classes=num_classes, options=options, **values)


def spec(name: str, *, num_classes: int, image_size: int) -> models.ModelSpec:
    values = models.fields(VARIANTS, name, image_size)
    dim, patches = values["dim"], (image_size // values["patch_size"]) ** 2
    tokens, units = patches + 1 + values.get("distilled", False), values["mlp_dim"] or MLP_RATIO * dim
    layers = [LinearInfo("patch_embed", 3 * values["patch_size"] ** 2, dim, patches, "embed")]
    for index in range(values["depth"]):
        block = f"blocks_{index}"
        layers += [
            LinearInfo(f"{block}/attn/qkv", dim, 3 * dim, tokens, "attention", f"{block}/norm1", heads=values["heads"]),
            LinearInfo(f"{block}/attn/proj", dim, dim, tokens, "attention", heads=values["heads"]),
            LinearInfo(f"{block}/mlp/fc1", dim, units, tokens, "mlp", f"{block}/norm2"),
            LinearInfo(f"{block}/mlp/fc2", units, dim, tokens, "mlp"),
        ]
    heads = ["head", "head_dist"] if values.get("distilled") and values["pool"] == "token" else ["head"]
    layers += [LinearInfo(head, dim, num_classes, 1, "head") for head in heads]
    return models.ModelSpec(tuple(layers), values["depth"], values["norm_eps"], values["gelu"])
