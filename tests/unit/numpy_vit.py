"""A ViT in float64 NumPy on timm's tensors, transcribed from the papers: the oracle for weights and numerics.

It reads compressed layers too, by what export/safetensors.py says of them.
"""

import math

import numpy as np
from scipy.special import erf


def layer_norm(x, weight, bias, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def exact_gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def swiglu(x):
    """The first half are the gates."""
    gate, value = np.split(x, 2, -1)
    return gate / (1 + np.exp(-gate)) * value


GELUS = {"exact": exact_gelu, "tanh": tanh_gelu, "quick": quick_gelu, "swiglu": swiglu}


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def unpacked(packed, bits):
    """Integers (n, m) of bytes (n, m bits / 8): bit by bit."""
    if bits == 4:
        return np.concatenate([packed & 15, packed >> 4], 1).astype(np.float64) - 8
    stacked = np.stack(np.split(packed, 3, 1), -1)
    bitwise = np.unpackbits(stacked, axis=-1, bitorder="little").reshape(*stacked.shape[:2], 4, 6)
    quarters = (bitwise * 2 ** np.arange(6)).sum(-1)
    return np.concatenate(list(np.moveaxis(quarters, -1, 0)), 1).astype(np.float64) - 32


def layers(tensors, clip=1.0, bits=8, weight_bits=8, group=0):
    """`linear(x, name)` of the layers in some tensors; `clip` is that of dynamic input scales."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def linear(x, name):
        if f"{name}.0.weight" not in t and f"{name}.0.weight_packed" not in t:
            return product(x, name, tensors.get(f"{name}.basis")) + t.get(f"{name}.bias", 0)
        z = product(x, f"{name}.0", tensors.get(f"{name}.0.basis"))
        y, bias = product(z, f"{name}.1"), t.get(f"{name}.1.bias", 0)
        if np.size(bias) == z.shape[-1] + y.shape[-1]:
            copied = tensors.get(f"{name}.1.basis", np.arange(z.shape[-1]))
            joined = np.zeros((*y.shape[:-1], len(bias)))
            joined[..., copied], joined[..., np.setdiff1d(np.arange(len(bias)), copied)] = z, y
            y = joined
        return y + bias

    def product(x, name, basis=None):
        """Without the bias; each row of `basis` are inputs that a head copies."""
        pixels = name in ("patch_embed.proj", "patch_embed.proj.0")
        if pixels and (basis is not None or f"{name}.weight_packed" in t):  # They go by (p, p, 3).
            p = math.isqrt(x.shape[-1] // 3)
            x = np.moveaxis(x.reshape(*x.shape[:2], 3, p, p), 2, 4).reshape(x.shape)
        if basis is None:
            return multiplied(x, name, [np.arange(x.shape[-1])])
        copied = np.atleast_2d(basis)
        inputs = [np.setdiff1d(np.arange(x.shape[-1]), one) for one in copied]
        return x[..., copied.reshape(-1)] + multiplied(x, name, inputs)

    def by_head(rows, weight, inputs):
        parts = zip(inputs, np.split(weight, len(inputs)), strict=True)
        return np.concatenate([rows[..., channels] @ part.T for channels, part in parts], -1)

    def multiplied(x, name, inputs):
        weight = t.get(f"{name}.weight")
        if weight is None:
            weight = unpacked(tensors[f"{name}.weight_packed"], weight_bits)[:, : len(inputs[0])]
        weight = weight.reshape(len(weight), -1)
        if f"{name}.weight_scale" not in t:
            return by_head(x, weight, inputs)
        scales = t[f"{name}.weight_scale"]
        weight = weight * np.repeat(scales, group or weight.shape[1], 1)[:, : weight.shape[1]]
        x, limit = x / t.get(f"{name}.input_smooth", 1), 2 ** (bits - 1) - 1
        center = t.get(f"{name}.input_center", 0)
        scale = t.get(f"{name}.input_scale", clip * np.abs(x).max(-1, keepdims=True) / limit)
        codes = np.clip(np.round((x - center) / scale), -limit, limit)
        return by_head(codes, weight, inputs) * scale + center * weight.sum(1)

    return linear


def logits(tensors, images, heads, eps=1e-6, gelu=exact_gelu, pool="token", **options):
    """Logits (batch, classes) of images (batch, size, size, 3), or features, where no tensor is a head's; options as of
    `layers`."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    patch = t.get("patch_embed.proj.weight", t.get("patch_embed.proj.0.weight"))
    # It may have no shape to tell: as many patches as positions behind the class token.
    told = patch is not None and patch.ndim == 4
    p = patch.shape[-1] if told else images.shape[1] // int(t["pos_embed"].shape[1] ** 0.5)
    dim = t["pos_embed"].shape[-1]
    batch, size = len(images), images.shape[1] // p * p
    linear = layers(tensors, **options)

    def norm(x, name):
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], eps)

    patches = [
        images[:, r : r + p, c : c + p].transpose(0, 3, 1, 2).reshape(batch, -1)
        for r in range(0, size, p)
        for c in range(0, size, p)
    ]
    patches = linear(np.stack(patches, axis=1), "patch_embed.proj")
    tokens = [t[name] for name in ("cls_token", "dist_token", "reg_token") if name in t]
    tokens = np.concatenate([np.zeros((1, 0, dim)), *tokens], 1)
    position, prefix = t["pos_embed"], tokens.shape[1]
    if position.shape[1] == patches.shape[1]:  # DeiT-III, DINOv2 with registers: none for other tokens
        position = np.pad(position, ((0, 0), (prefix, 0), (0, 0)))
    x = np.concatenate([np.repeat(tokens, batch, 0), patches], 1) + position
    x = norm(x, "norm_pre") if "norm_pre.weight" in t else x
    depth = sum(name.endswith("norm1.weight") for name in t)

    for index in range(depth):
        block = f"blocks.{index}"
        whole = any(name.startswith(f"{block}.attn.qkv.") for name in t)
        names = ["qkv"] if whole else ["query", "key", "value"]
        parts = [linear(norm(x, f"{block}.norm1"), f"{block}.attn.{name}") for name in names]
        parts = np.split(parts[0], 3, -1) if whole else parts
        q, k, v = (np.moveaxis(part.reshape(batch, -1, heads, part.shape[-1] // heads), 2, 1) for part in parts)
        if f"{block}.attn.q_norm.weight" in t:
            q, k = norm(q, f"{block}.attn.q_norm"), norm(k, f"{block}.attn.k_norm")
        mixed = np.moveaxis(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(dim // heads)) @ v, 1, 2)
        mixed = linear(mixed.reshape(*mixed.shape[:2], -1), f"{block}.attn.proj")
        x = x + mixed * t.get(f"{block}.ls1.gamma", 1)
        hidden = linear(gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = x + hidden * t.get(f"{block}.ls2.gamma", 1)

    def by_head(x):
        return np.moveaxis(x.reshape(batch, -1, heads, dim // heads), 2, 1)

    def attended(x):
        """SigLIP's: one query for all tokens, then an MLP."""
        q = by_head(np.repeat(linear(t["attn_pool.latent"], "attn_pool.q"), batch, 0))
        k, v = (by_head(part) for part in np.split(linear(x, "attn_pool.kv"), 2, -1))
        mixed = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(dim // heads)) @ v
        x = linear(np.moveaxis(mixed, 1, 2).reshape(batch, dim), "attn_pool.proj")
        hidden = gelu(linear(norm(x, "attn_pool.norm"), "attn_pool.mlp.fc1"))
        return x + linear(hidden, "attn_pool.mlp.fc2")

    def head(x, name="head"):
        x = linear(x, "project") if any(key.startswith("project.") for key in t) else x
        return linear(x, name) if any(key.startswith(f"{name}.") for key in t) else x

    if pool == "avg":
        return head(norm(x[:, prefix:].mean(1), "norm"))
    x = norm(x, "norm")
    if pool == "map":
        return head(attended(x[:, prefix:]))
    mean = x[:, prefix:].mean(1)
    out = head({"normavg": mean, "concat": np.concatenate([x[:, 0], mean], 1)}.get(pool, x[:, 0]))
    two = "head_dist.weight" in t or ("dist_token" in t and not any(name.startswith("head.") for name in t))
    return (out + head(x[:, 1], "head_dist")) / 2 if two else out


def random_tensors(
    rng,
    dim,
    depth,
    patch,
    side,
    classes,
    distilled=False,
    layer_scale=False,
    units=0,
    embed_class=True,
    *,
    class_token=True,
    registers=0,
    pre_norm=False,
    qk_norm=0,
    swiglu=False,
    pool="token",
    projection=0,
):
    """Random weights in timm's names and PyTorch's layout, every bias and vector too; `qk_norm` is the channels of a
    head, `classes` 0 has no head, `embed_class` says whether what comes before the patches has positions."""

    def normal(*shape, std=0.05):
        return rng.normal(0, std, shape).astype(np.float32)

    prefix = embed_class * (class_token + registers) + distilled
    tokens, units = side**2 + prefix, units or 4 * dim
    t = {"cls_token": normal(1, 1, dim)} if class_token else {}
    t |= {"reg_token": normal(1, registers, dim)} if registers else {}
    t |= {"pos_embed": normal(1, tokens, dim), "patch_embed.proj.weight": normal(dim, 3, patch, patch)}
    t |= {} if pre_norm else {"patch_embed.proj.bias": normal(dim)}
    layers = {
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "mlp.fc1": ((1 + swiglu) * units, dim),
        "mlp.fc2": (dim, units),
    }
    norms = {"norm": dim, "norm_pre": dim * pre_norm, "attn_pool.norm": dim * (pool == "map")}
    for index in range(depth):
        block = f"blocks.{index}"
        for name, shape in layers.items():
            t |= {f"{block}.{name}.weight": normal(*shape), f"{block}.{name}.bias": normal(shape[0])}
        for name in ("norm1", "norm2"):
            t |= {f"{block}.{name}.weight": 1 + normal(dim), f"{block}.{name}.bias": normal(dim)}
        norms |= {f"{block}.attn.{name}": qk_norm for name in ("q_norm", "k_norm")}
        if layer_scale:
            t |= {f"{block}.{name}.gamma": normal(dim, std=0.5) for name in ("ls1", "ls2")}
    for name, width in norms.items():
        t |= {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)} if width else {}
    if pool == "map":
        t["attn_pool.latent"] = normal(1, 1, dim, std=1)
        more = {"q": (dim, dim), "kv": (2 * dim, dim), "proj": (dim, dim)}
        more |= {name: shape for name, shape in layers.items() if name.startswith("mlp")}
        for name, shape in more.items():
            t |= {f"attn_pool.{name}.weight": normal(*shape), f"attn_pool.{name}.bias": normal(shape[0])}
    if projection:
        t["project.weight"] = normal(projection, dim)
    wide = projection or dim * (1 + (pool == "concat"))
    for head in (["head", "head_dist"] if distilled else ["head"]) if classes else []:
        t |= {f"{head}.weight": normal(classes, wide), f"{head}.bias": normal(classes)}
    return t | ({"dist_token": normal(1, 1, dim)} if distilled else {})
