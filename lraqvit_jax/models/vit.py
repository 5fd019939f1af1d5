"""ViT and DeiT encoders (Dosovitskiy et al. 2021; Touvron et al. 2021) and those that came after: CLIP (Radford et al.
2021), DINOv2 (Oquab et al. 2023) with registers (Darcet et al. 2023), SigLIP (Zhai et al. 2023); timm's parameter
layout."""

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
_DEFAULTS: dict[str, Any] = {
    **{"gelu": "exact", "norm_eps": NORM_EPS, "pool": "token", "mlp_dim": 0, "class_token": True, "registers": 0},
    **{"pre_norm": False, "qk_norm": False, "projection": 0, "spare": 0},
}
_SIGLIP: dict[str, Any] = {"class_token": False, "pool": "map", "gelu": "tanh"}
VARIANTS: dict[str, dict[str, Any]] = {
    "vit_pico": {"patch_size": 4, "dim": 32, "depth": 2, "heads": 2},
    "vit_nano": {"patch_size": 7, "dim": 128, "depth": 4, "heads": 4},
}
for _size, _fields in _SIZES.items():
    VARIANTS |= {f"{family}_{_size}": _fields for family in ("vit", "deit")}
    VARIANTS[f"deit_{_size}_distilled"] = {**_fields, "distilled": True}
    VARIANTS[f"deit3_{_size}"] = {**_fields, "layer_scale": True}
for _size in ("small", "base", "large"):
    VARIANTS[f"dinov2_{_size}"] = {**_SIZES[_size], "patch_size": 14, "layer_scale": True}
VARIANTS |= {
    "dinov2_giant": {
        **{"patch_size": 14, "dim": 1536, "depth": 40, "heads": 24, "mlp_dim": 4096},
        **{"layer_scale": True, "gelu": "swiglu"},
    },
    "clip_base": {**_SIZES["base"], "pre_norm": True, "gelu": "quick", "norm_eps": 1e-5},
    "clip_large": {**_SIZES["large"], "patch_size": 14, "pre_norm": True, "gelu": "quick", "norm_eps": 1e-5},
    "siglip_base": {**_SIZES["base"], **_SIGLIP},
    "siglip_large": {**_SIZES["large"], **_SIGLIP},
    "siglip_so400m": {"patch_size": 14, "dim": 1152, "depth": 27, "heads": 16, "mlp_dim": 4304, **_SIGLIP},
}
for _name, _fields in VARIANTS.items():
    VARIANTS[_name] = _fields | {_field: _value for _field, _value in _DEFAULTS.items() if _field not in _fields}


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
    """Multi-head self-attention. Softmax in float32, products as the plan says of qkv, or of query.

    With `qk_norm`, a LayerNorm sees the queries and another the keys of each head (Dehghani et al. 2023).
    """

    heads: int
    options: LinearOptions
    qk_norm: bool = False
    norm_eps: float = NORM_EPS

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        batch, tokens, dim = x.shape
        arithmetic = self.options.arithmetic
        (query, key, value), layer = projections(x, self.heads, self.options, self.path)
        if self.qk_norm:
            query = layer_norm("q_norm", self.norm_eps)(query).astype(value.dtype)
            key = layer_norm("k_norm", self.norm_eps)(key).astype(value.dtype)
        logits = attention.logits(query * (dim // self.heads) ** -0.5, key, layer, arithmetic)
        show(self, logits)
        weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)
        mixed = attention.mix(weights, value, layer, arithmetic).astype(value.dtype).reshape(batch, tokens, -1)
        return Linear(dim, self.options, ("heads", "embed"), name="proj")(mixed)


def patches(images: Float[Array, "batch size size 3"], p: int) -> Float[Array, "batch tokens pixels"]:
    """Cuts images into squares of side p, each flat in the order row, column, channel. What is left at the right and at
    the bottom is not seen."""
    batch, side = images.shape[0], images.shape[1] // p
    images = images[:, : side * p, : side * p]
    cut = images.reshape(batch, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, side * side, p * p * 3)


def gelu(x: Float[Array, "..."], kind: str) -> Float[Array, "..."]:
    """GELU, "exact", or its approximation by "tanh" or, "quick", by a sigmoid; "swiglu", the SiLU of the first half of
    the features times the second half (Shazeer 2020).

    By erf: XLA's CPU backend takes twice as long for Flax's form, with erfc, which differs by 5e-7 at most.
    """
    if kind == "swiglu":
        gate, value = jnp.split(x, 2, axis=-1)
        return nn.silu(gate) * value
    if kind == "quick":
        return x * nn.sigmoid(QUICK * x)
    return nn.gelu(x) if kind == "tanh" else 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def gates(kind: str) -> int:
    """Outputs of fc1 for each hidden unit."""
    return 2 if kind == "swiglu" else 1


class Mlp(nn.Module):
    """fc1, GELU (see `gelu`), fc2, with as many hidden units between them; 0 are `MLP_RATIO` for each feature. For
    SwiGLU fc1 gives two numbers a unit."""

    options: LinearOptions
    gelu: str = "exact"
    units: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        dim = x.shape[-1]
        width = self.options.of("/".join((*self.path, "fc1"))).width or self.units or MLP_RATIO * dim
        wide = gates(self.gelu) * width
        hidden = Linear(wide, self.options, ("embed", "mlp"), name="fc1")(x)
        return Linear(dim, self.options, ("mlp", "embed"), name="fc2")(gelu(hidden, self.gelu))


class Block(nn.Module):
    """Pre-norm encoder block. With `layer_scale`, each branch is multiplied by a vector (Touvron et al. 2021b)."""

    heads: int
    options: LinearOptions
    layer_scale: bool = False
    gelu: str = "exact"
    norm_eps: float = NORM_EPS
    mlp_dim: int = 0
    qk_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        dtype = self.options.dtype
        attend = Attention(self.heads, self.options, self.qk_norm, self.norm_eps, name="attn")
        branch = attend(layer_norm("norm1", self.norm_eps)(x).astype(dtype))
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


class AttentionPool(nn.Module):
    """Attention pooling, "MAP": one learned query attends to the tokens, then an MLP (Zhai et al. 2022)."""

    heads: int
    options: LinearOptions
    gelu: str = "exact"
    norm_eps: float = NORM_EPS
    mlp_dim: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch 1 dim"]:
        (batch, tokens, dim), heads, dtype = x.shape, self.heads, self.options.dtype
        boxed: Any = nn.with_logical_partitioning(nn.initializers.truncated_normal(dim**-0.5), (None, None, "embed"))
        latent: Any = self.param("latent", boxed, (1, 1, dim))
        rows = jnp.broadcast_to(latent.astype(dtype), (batch, 1, dim))
        query = Linear(dim, self.options, ("embed", "heads"), name="q")(rows).reshape(batch, 1, heads, -1)
        pair = Linear(2 * dim, self.options, ("embed", "heads"), name="kv")(x)
        key, value = jnp.moveaxis(pair.reshape(batch, tokens, 2, heads, dim // heads), 2, 0)
        logits = jnp.einsum("...qhd,...khd->...hqk", query * (dim // heads) ** -0.5, key)
        shares = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)
        mixed = jnp.einsum("...hqk,...khd->...qhd", shares, value).reshape(batch, 1, dim)
        x = Linear(dim, self.options, ("heads", "embed"), name="proj")(mixed)
        y = layer_norm("norm", self.norm_eps)(x).astype(dtype)
        return x + Mlp(self.options, self.gelu, self.mlp_dim, name="mlp")(y)


class ViT(nn.Module):
    """A ViT, a classifier or, with `num_classes` 0, what gives the features that a head would read.

    `pool` says of what: "token", the class token, in a distilled DeiT also the distillation token, the two logits
    averaged; "first", the class token alone; "avg", the mean of the patches' tokens, which the last LayerNorm then sees
    (timm's fc_norm); "normavg", the mean of the tokens that it has seen; "concat", the class token and that mean side
    by side; "map", see `AttentionPool`, of the patches' tokens.

    Before the patches' tokens come the class token, unless `class_token` is False, that of distillation, and as many
    `registers`, which have no position. `pre_norm` has a LayerNorm before the first block, and then no bias in the
    patch embedding (CLIP). `projection` is the size of a linear layer without a bias behind the pooling; 0 is none.
    `mlp_dim` is the hidden units of an MLP, 0 `MLP_RATIO` for each feature. `spare` is how many rows and columns of an
    image are left over by the patches, and not seen.

    `apply({"params": params}, images)` takes normalized float images (batch, size, size, 3) and gives float32 logits
    (batch, num_classes), or features (batch, `width`).
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
    class_token: bool = True
    registers: int = 0
    pre_norm: bool = False
    qk_norm: bool = False
    projection: int = 0
    spare: int = 0

    def setup(self) -> None:
        normal = nn.initializers.truncated_normal(0.02)
        tokens = (self.image_size // self.patch_size) ** 2 + self.first
        self.patch_embed = Linear(self.dim, self.options, ("patch", "embed"), use_bias=not self.pre_norm)
        boxed: Any = nn.with_logical_partitioning(normal, (None, None, "embed"))
        if self.class_token:
            self.cls_token: Any = self.param("cls_token", boxed, (1, 1, self.dim))
        if self.distilled:
            self.dist_token: Any = self.param("dist_token", boxed, (1, 1, self.dim))
            if self.two_heads and self.num_classes:
                self.head_dist = Linear(self.num_classes, self.options, ("embed", "classes"))
        if self.registers:
            self.reg_token: Any = self.param("reg_token", boxed, (1, self.registers, self.dim))
        self.pos_embed: Any = self.param("pos_embed", boxed, (1, tokens, self.dim))
        if self.pre_norm:
            self.norm_pre = layer_norm("norm_pre", self.norm_eps)
        self.blocks = [block for _, block in self.chain(models.rematerialized(Block, self.options))]
        self.norm = layer_norm("norm", self.norm_eps)
        if self.pool == "map":
            self.attn_pool = AttentionPool(self.heads, self.options, self.gelu, self.norm_eps, self.mlp_dim)
        if self.projection:
            self.project = Linear(self.projection, self.options, ("embed", "classes"), use_bias=False)
        if self.num_classes:
            self.head = Linear(self.num_classes, self.options, ("embed", "classes"))

    @property
    def two_heads(self) -> bool:
        return self.distilled and self.pool == "token"

    @property
    def first(self) -> int:
        """Tokens of class and distillation, which come first."""
        return self.class_token + self.distilled

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return self.first + self.registers

    @property
    def width(self) -> int:
        """Features that the head reads, or that are the model's output where there is none."""
        return self.projection or pooled_dim(self.dim, self.pool)

    @nn.nowrap
    def chain(self, block: type[nn.Module] = Block) -> list[tuple[str, nn.Module]]:
        """Everything that maps tokens to tokens, in order, with the path of its parameters."""
        fields = (self.heads, self.options, self.layer_scale, self.gelu, self.norm_eps, self.mlp_dim, self.qk_norm)
        return [(f"blocks_{index}", block(*fields)) for index in range(self.depth)]

    def embed(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch tokens dim"]:
        """Patches, class token, position embedding; registers; the LayerNorm before the blocks."""
        batch, first = images.shape[0], self.first
        x = self.patch_embed(patches(images, self.patch_size).astype(self.options.dtype))

        def everywhere(token: Any) -> Array:
            return jnp.broadcast_to(token.astype(x.dtype), (batch, *token.shape[1:]))

        tokens = [self.cls_token] if self.class_token else []
        tokens += [self.dist_token] if self.distilled else []
        x = jnp.concatenate([*map(everywhere, tokens), x], axis=1) + self.pos_embed.astype(x.dtype)
        if self.registers:
            x = jnp.concatenate([x[:, :first], everywhere(self.reg_token), x[:, first:]], axis=1)
        if self.pre_norm:
            x = self.norm_pre(x).astype(x.dtype)
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
        """Logits from the last block's output, or features."""
        if self.pool == "avg":
            x = jnp.mean(x[:, self.prefix :].astype(jnp.float32), axis=1, keepdims=True)
        x = self.norm(x)
        if self.pool in ("normavg", "concat"):
            mean = jnp.mean(x[:, self.prefix :], axis=1, keepdims=True)
            x = mean if self.pool == "normavg" else jnp.concatenate([x[:, :1], mean], axis=-1)
        x = x.astype(self.options.dtype)
        if self.pool == "map":
            x = self.attn_pool(x[:, self.prefix :])
        logits = self._head(x[:, 0], "head")
        if self.two_heads:
            logits = (logits + self._head(x[:, 1], "head_dist")) / 2
        return logits

    def _head(self, x: Float[Array, "batch dim"], name: str) -> Float[Array, "batch classes"]:
        x = self.project(x) if self.projection else x
        return (getattr(self, name)(x) if self.num_classes else x).astype(jnp.float32)

    def forced(
        self, images: Float[Array, "batch size size 3"], features: Sequence[Float[Array, "batch tokens dim"]]
    ) -> list[Float[Array, "batch tokens dim"]]:
        """Outputs of every block where block l > 0 is fed the given output of block l - 1 (teacher forcing)."""
        inputs = [self.embed(images), *(feature.astype(self.options.dtype) for feature in features[:-1])]
        return [block(x) for block, x in zip(self.blocks, inputs, strict=True)]


def create(name: str, *, num_classes: int, image_size: int, options: LinearOptions) -> ViT:
    values = models.fields(VARIANTS, name, image_size)
    return ViT(image_size=image_size, num_classes=num_classes, options=options, **values)


def pooled_dim(dim: int, pool: str) -> int:
    """Features that the pooling gives."""
    return 2 * dim if pool == "concat" else dim


def spec(name: str, *, num_classes: int, image_size: int) -> models.ModelSpec:
    values = models.fields(VARIANTS, name, image_size)
    dim, patches, heads = values["dim"], (image_size // values["patch_size"]) ** 2, values["heads"]
    distilled = values.get("distilled", False)
    tokens = patches + values["class_token"] + distilled + values["registers"]
    units, gated = values["mlp_dim"] or MLP_RATIO * dim, values["gelu"] == "swiglu"
    wide = gates(values["gelu"]) * units
    layers = [
        LinearInfo("patch_embed", 3 * values["patch_size"] ** 2, dim, patches, "embed", bias=not values["pre_norm"])
    ]
    for index in range(values["depth"]):
        block = f"blocks_{index}"
        normed = values["qk_norm"]
        layers += [
            LinearInfo(
                f"{block}/attn/qkv", dim, 3 * dim, tokens, "attention", f"{block}/norm1", heads=heads, normed=normed
            ),
            LinearInfo(f"{block}/attn/proj", dim, dim, tokens, "attention", heads=heads),
            LinearInfo(f"{block}/mlp/fc1", dim, wide, tokens, "mlp", f"{block}/norm2", gated=gated),
            LinearInfo(f"{block}/mlp/fc2", units, dim, tokens, "mlp"),
        ]
    if values["pool"] == "map":
        layers += [
            LinearInfo("attn_pool/q", dim, dim, 1, "head"),
            LinearInfo("attn_pool/kv", dim, 2 * dim, patches, "head"),
            LinearInfo("attn_pool/proj", dim, dim, 1, "head"),
            LinearInfo("attn_pool/mlp/fc1", dim, wide, 1, "head", gated=gated),
            LinearInfo("attn_pool/mlp/fc2", units, dim, 1, "head"),
        ]
    pooled, projection = pooled_dim(dim, values["pool"]), values["projection"]
    if projection:
        layers.append(LinearInfo("project", pooled, projection, 1, "head", bias=False))
    if num_classes:
        names = ["head", "head_dist"] if distilled and values["pool"] == "token" else ["head"]
        layers += [LinearInfo(head, projection or pooled, num_classes, 1, "head") for head in names]
    return models.ModelSpec(tuple(layers), values["depth"], values["norm_eps"], values["gelu"])
