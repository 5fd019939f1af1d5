"""ViT, DeiT and Swin in PyTorch from the tensors of `export.safetensors`: what a user of PyTorch would run.

An int8 layer is `torch.ao.nn.quantized.dynamic.Linear`, what `quantize_dynamic` makes of a linear layer, with the
integers and the scales of the file: PyTorch scales the activations itself, one scale for a tensor.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Tensors = Mapping[str, torch.Tensor]
BLOCKED = -100.0
"""Added to the attention between tokens of different regions of a shifted map, as in the authors' code."""


def build(tensors: Tensors, family: str, fields: Mapping[str, Any]) -> nn.Module:
    """The model of a file.

    Args:
        tensors: of the file, by name.
        family: "vit" or "swin".
        fields: of the variant, as `lraqvit_jax.models` has them.

    Raises:
        ValueError: layers of a form that PyTorch's dynamic int8 does not have, or a patch embedding that copies pixels.
    """
    return {"vit": Vit, "swin": Swin}[family](tensors, fields)


def linear(tensors: Tensors, name: str) -> nn.Module:
    """One layer, in the form that its tensors have."""
    if f"{name}.0.weight" not in tensors:
        return product(tensors, name, tensors.get(f"{name}.bias"), tensors.get(f"{name}.basis"))
    first = product(tensors, f"{name}.0", None, tensors.get(f"{name}.0.basis"))
    bias, basis = tensors.get(f"{name}.1.bias"), tensors.get(f"{name}.1.basis")
    n = sum(tensors[f"{name}.1.weight"].shape)
    if basis is None and (bias is None or len(bias) < n):
        return nn.Sequential(first, product(tensors, f"{name}.1", bias))
    places = None if basis is None else torch.argsort(torch.cat([basis.long(), others(basis, n)]))
    return nn.Sequential(first, Joined(product(tensors, f"{name}.1", None), places, bias))


def product(tensors: Tensors, name: str, bias: torch.Tensor | None, basis: torch.Tensor | None = None) -> nn.Module:
    """One matrix, and where a basis, (width,) or (heads, width), says which inputs are copied, those added."""
    if f"{name}.input_scale" in tensors:
        raise ValueError("PyTorch has dynamic int8 alone, and this model static scales")
    scale = tensors.get(f"{name}.weight_scale")
    if f"{name}.weight" not in tensors or (scale is not None and scale.shape[1] > 1):
        raise ValueError("PyTorch's dynamic int8 has kernels of 8 bits, one scale to a channel")
    weight, copied = tensors[f"{name}.weight"].flatten(1), None
    if basis is not None:
        if name.startswith("patch_embed"):
            raise ValueError("the patch embedding of this model copies pixels, for which PyTorch has no form here")
        copied = basis.long()
        weight = spread(weight, torch.atleast_2d(copied))
    n, m = weight.shape
    if copied is not None and scale is None:  # One product is faster than copies.
        weight[torch.arange(n), copied.flatten()] = 1
    if scale is None:
        made: Any = nn.Linear(m, n, bias is not None, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    else:
        made = torch.ao.nn.quantized.dynamic.Linear(m, n, bias_=bias is not None)
        zeros = torch.zeros(n, dtype=torch.int64)
        made.set_weight_bias(torch.quantize_per_channel(weight * scale, scale[:, 0], zeros, 0, torch.qint8), bias)
    smooth = tensors.get(f"{name}.input_smooth")
    made = made if smooth is None else nn.Sequential(Scaled(1 / smooth), made)
    return made if copied is None or scale is None else Copied(made, copied.flatten())


def spread(weight: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    """The matrix (n, m) of all inputs, zeros for those that a head copies.

    Args:
        weight: as stored, (n, m - width), head after head.
        bases: which inputs each head copies, (heads, width).
    """
    heads, width = bases.shape
    whole = weight.new_zeros(len(weight), weight.shape[1] + width)
    for rows, stored, copied in zip(whole.chunk(heads), weight.chunk(heads), bases, strict=True):
        rows[:, others(copied, whole.shape[1])] = stored
    return whole


def others(basis: torch.Tensor, count: int) -> torch.Tensor:
    """The numbers below `count` that are not in the basis, rising."""
    left = torch.ones(count, dtype=torch.bool)
    left[basis.long()] = False
    return left.nonzero()[:, 0]


class Copied(nn.Module):
    """`x[channels] + multiply(x)`."""

    channels: torch.Tensor

    def __init__(self, multiply: nn.Module, channels: torch.Tensor) -> None:
        super().__init__()
        self.multiply = multiply
        self.register_buffer("channels", channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., self.channels] + self.multiply(x)


class Joined(nn.Module):
    """`[z, multiply(z)] + bias`, its channels in the order of `places`; None leaves them as they are."""

    places: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, multiply: nn.Module, places: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.multiply = multiply
        self.register_buffer("places", places)
        self.register_buffer("bias", bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        y = torch.cat([z, self.multiply(z)], -1)
        y = y if self.places is None else y[..., self.places]
        return y if self.bias is None else y + self.bias


class Scaled(nn.Module):
    """Multiplies by a vector."""

    factor: torch.Tensor

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def norm(tensors: Tensors, name: str, eps: float) -> nn.LayerNorm:
    weight = tensors[f"{name}.weight"]
    made = nn.LayerNorm(len(weight), eps)
    made.load_state_dict({"weight": weight, "bias": tensors[f"{name}.bias"]})
    return made


def patches(images: torch.Tensor, p: int) -> torch.Tensor:
    """(batch, size, size, 3) -> (batch, tokens, 3 p p), in the order of a convolution's kernel."""
    batch, side = images.shape[0], images.shape[1] // p
    cut = images[:, : side * p, : side * p].reshape(batch, side, p, side, p, 3).permute(0, 1, 3, 5, 2, 4)
    return cut.reshape(batch, side * side, 3 * p * p)


class Attention(nn.Module):
    def __init__(self, tensors: Tensors, name: str, heads: int, eps: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        ends, normed = ("q_norm", "k_norm"), f"{name}.q_norm.weight" in tensors
        self.norms = nn.ModuleList(norm(tensors, f"{name}.{end}", eps) if normed else nn.Identity() for end in ends)
        by_head = any(key.startswith(f"{name}.query.") for key in tensors)
        names = ("query", "key", "value") if by_head else ("qkv",)
        self.projections = nn.ModuleList(linear(tensors, f"{name}.{part}") for part in names)
        self.proj = linear(tensors, f"{name}.proj")

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(groups, tokens, dim) -> the same; `bias`, (1 or groups, heads, tokens, tokens), is added to the logits."""
        groups, tokens, dim = x.shape
        outputs = [layer(x) for layer in self.projections]
        parts = outputs if len(outputs) > 1 else outputs[0].chunk(3, -1)
        query, key, value = (part.reshape(groups, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        query, key = (one(part) for one, part in zip(self.norms, (query, key), strict=True))
        scale = (dim // self.heads) ** -0.5
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
        return self.proj(mixed.transpose(1, 2).reshape(groups, tokens, -1))


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class SwiGlu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, -1)
        return functional.silu(gate) * value


class Mlp(nn.Sequential):
    def __init__(self, tensors: Tensors, name: str, gelu: str) -> None:
        odd = {"quick": QuickGelu, "swiglu": SwiGlu}.get(gelu)
        middle = odd() if odd else nn.GELU(approximate="tanh" if gelu == "tanh" else "none")
        super().__init__(linear(tensors, f"{name}.fc1"), middle, linear(tensors, f"{name}.fc2"))


class VitBlock(nn.Module):
    def __init__(self, tensors: Tensors, name: str, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm1, self.norm2 = (norm(tensors, f"{name}.norm{index}", fields["norm_eps"]) for index in (1, 2))
        self.attn = Attention(tensors, f"{name}.attn", fields["heads"], fields["norm_eps"])
        self.mlp = Mlp(tensors, f"{name}.mlp", fields["gelu"])
        scales = (tensors.get(f"{name}.ls{index}.gamma") for index in (1, 2))
        self.ls1, self.ls2 = (nn.Identity() if one is None else Scaled(one) for one in scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """One query for all tokens, and an MLP: (batch, tokens, dim) -> (batch, 1, dim)."""

    def __init__(self, tensors: Tensors, name: str, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads, self.latent = fields["heads"], nn.Parameter(tensors[f"{name}.latent"])
        self.q, self.kv, self.proj = (linear(tensors, f"{name}.{layer}") for layer in ("q", "kv", "proj"))
        self.norm = norm(tensors, f"{name}.norm", fields["norm_eps"])
        self.mlp = Mlp(tensors, f"{name}.mlp", fields["gelu"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, dim = x.shape
        parts = (self.q(self.latent.expand(batch, -1, -1)), *self.kv(x).chunk(2, -1))
        query, key, value = (part.reshape(batch, -1, self.heads, dim // self.heads).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = self.proj(mixed.transpose(1, 2).reshape(batch, 1, dim))
        return x + self.mlp(self.norm(x))


class Vit(nn.Module):
    def __init__(self, tensors: Tensors, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.patch, self.pool = fields["patch_size"], fields["pool"]
        self.patch_embed = linear(tensors, "patch_embed.proj")
        positions, eps = tensors["pos_embed"], fields["norm_eps"]
        tokens = [tensors[name] for name in ("cls_token", "dist_token", "reg_token") if name in tensors]
        prefix = torch.cat([positions[:, :0], *tokens], 1)
        # timm's DeiT-III and models with registers give what comes before the patches no position.
        first = positions.shape[1] - (fields["image_size"] // self.patch) ** 2
        if first:
            prefix, positions = prefix + positions[:, :first], positions[:, first:]
        self.prefix, self.positions = nn.Parameter(prefix), nn.Parameter(positions)
        self.norm_pre = norm(tensors, "norm_pre", eps) if fields["pre_norm"] else nn.Identity()
        self.blocks = nn.Sequential(*(VitBlock(tensors, f"blocks.{index}", fields) for index in range(fields["depth"])))
        self.norm = norm(tensors, "norm", eps)
        self.attn_pool = AttentionPool(tensors, "attn_pool", fields) if self.pool == "map" else nn.Identity()
        self.project = linear(tensors, "project") if fields["projection"] else nn.Identity()
        heads = ("head", "head_dist")[: 2 if fields.get("distilled") and self.pool == "token" else 1]
        headless = not any(name.startswith("head.") for name in tensors)
        self.heads = nn.ModuleList(nn.Identity() if headless else linear(tensors, name) for name in heads)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(patches(images, self.patch)) + self.positions
        x = self.blocks(self.norm_pre(torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)))
        count = self.prefix.shape[1]
        x = self.norm(x[:, count:].mean(1, keepdim=True) if self.pool == "avg" else x)
        if self.pool in ("normavg", "concat"):
            mean = x[:, count:].mean(1, keepdim=True)
            x = torch.cat([x[:, :1], mean], -1) if self.pool == "concat" else mean
        x = self.attn_pool(x[:, count:]) if self.pool == "map" else x
        logits = [head(self.project(x[:, index])) for index, head in enumerate(self.heads)]
        return sum(logits[1:], logits[0]) / len(logits)


class SwinBlock(nn.Module):
    bias: torch.Tensor

    def __init__(self, tensors: Tensors, name: str, side: int, window: int, shift: int, heads: int, gelu: str) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.padded = side + -side % window
        self.norm1, self.norm2 = (norm(tensors, f"{name}.norm{index}", 1e-5) for index in (1, 2))
        self.attn = Attention(tensors, f"{name}.attn", heads)
        self.mlp = Mlp(tensors, f"{name}.mlp", gelu)
        bias = tensors[f"{name}.attn.relative_position_bias_table"][_bias_index(window)].permute(2, 0, 1)[None]
        self.register_buffer("bias", bias + self._mask()[:, None] if shift else bias)

    def _mask(self) -> torch.Tensor:
        """(windows, tokens, tokens)."""
        place = torch.arange(self.padded)
        region = (place >= self.padded - self.window).long() + (place >= self.padded - self.shift).long()
        regions = self._windows((3 * region[:, None] + region)[None, ..., None])[..., 0]
        return (regions[:, :, None] != regions[:, None]).float() * BLOCKED

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, side, side, dim) -> (batch * windows, tokens, dim)."""
        count, window = self.padded // self.window, self.window
        x = x.reshape(-1, count, window, count, window, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, window * window, x.shape[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (batch, _, dim), side, window = x.shape, self.side, self.window
        y, extra = self.norm1(x).reshape(batch, side, side, dim), self.padded - side
        y = functional.pad(y, (0, 0, 0, extra, 0, extra)) if extra else y
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        bias = self.bias.repeat(batch, 1, 1, 1) if self.shift else self.bias
        count = self.padded // window
        y = self.attn(self._windows(y), bias).reshape(batch, count, count, window, window, dim).transpose(2, 3)
        y = y.reshape(batch, self.padded, self.padded, dim)
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        x = x + y[:, :side, :side].reshape(batch, side * side, dim)
        return x + self.mlp(self.norm2(x))


def _bias_index(window: int) -> torch.Tensor:
    """For each pair of tokens of a window, the row of the relative position bias table."""
    token = torch.arange(window * window)
    dy, dx = (axis[:, None] - axis + window - 1 for axis in (token // window, token % window))
    return (2 * window - 1) * dy + dx


class Merging(nn.Module):
    """Joins 2 x 2 tokens, column by column, and halves their features."""

    def __init__(self, tensors: Tensors, name: str, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm, self.reduction = norm(tensors, f"{name}.norm", 1e-5), linear(tensors, f"{name}.reduction")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (batch, _, dim), side, odd = x.shape, self.side, self.side % 2
        x, half = x.reshape(batch, side, side, dim), (side + 1) // 2
        x = functional.pad(x, (0, 0, 0, odd, 0, odd)) if odd else x
        x = x.reshape(batch, half, 2, half, 2, dim).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, half * half, 4 * dim)))


class Swin(nn.Module):
    def __init__(self, tensors: Tensors, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.patch, window, gelu = fields["patch_size"], fields["window_size"], fields["gelu"]
        self.patch_embed, self.patch_norm = linear(tensors, "patch_embed.proj"), norm(tensors, "patch_embed.norm", 1e-5)
        side, parts = fields["image_size"] // self.patch, list[nn.Module]()
        for stage, (depth, heads) in enumerate(zip(fields["depths"], fields["heads"], strict=True)):
            if stage:
                parts.append(Merging(tensors, f"layers.{stage}.downsample", side))
                side = math.ceil(side / 2)
            used, shift = (side, 0) if side <= window else (window, window // 2)
            parts += [
                SwinBlock(tensors, f"layers.{stage}.blocks.{index}", side, used, shift * (index % 2), heads, gelu)
                for index in range(depth)
            ]
        self.parts, self.norm = nn.Sequential(*parts), norm(tensors, "norm", 1e-5)
        self.head = linear(tensors, "head.fc") if any(name.startswith("head.") for name in tensors) else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_norm(self.patch_embed(patches(images, self.patch)))
        return self.head(self.norm(self.parts(x)).mean(1))
