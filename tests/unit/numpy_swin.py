"""A Swin in float64 NumPy on timm's tensors, transcribed from the paper (Liu et al. 2021): the oracle for ours.

Window by window: each is a list of places on the padded map, a pair of places looks its bias up by how far apart they
are, and two tokens attend to each other if the cyclic shift carried both or neither of them round an edge.
"""

import re

import numpy as np

from tests.unit.numpy_vit import exact_gelu, layer_norm


def windows(side, window, shift):
    """For each window its tokens as (row, column, carried over the bottom, carried over the right)."""
    found = []
    for top in range(0, side, window):
        for left in range(0, side, window):
            rows = [top + shift + step for step in range(window)]
            columns = [left + shift + step for step in range(window)]
            found.append([(r % side, c % side, r >= side, c >= side) for r in rows for c in columns])
    return found


def position_bias(table, window):
    """(heads, tokens, tokens) from a table of every (row distance, column distance)."""
    distances = table.reshape(2 * window - 1, 2 * window - 1, -1)
    places = [(r, c) for r in range(window) for c in range(window)]
    bias = np.zeros((table.shape[-1], window**2, window**2))
    for query, (r, c) in enumerate(places):
        for key, (other_r, other_c) in enumerate(places):
            bias[:, query, key] = distances[r - other_r + window - 1, c - other_c + window - 1]
    return bias


def attention(x, window, shift, qkv, proj, table):
    """Window attention on one padded map (side, side, dim)."""
    (side, dim), heads = x.shape[1:], table.shape[-1]
    out, width, bias = np.zeros_like(x), dim // heads, position_bias(table, window)
    for places in windows(side, window, shift):
        q, k, v = np.split(qkv(np.stack([x[r, c] for r, c, _, _ in places])), 3, axis=-1)
        carried = [place[2:] for place in places]
        apart = np.array([[one != other for other in carried] for one in carried])
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / np.sqrt(width) + bias[head]
            scores[apart] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        for (r, c, _, _), token in zip(places, proj(np.concatenate(mixed, -1)), strict=True):
            out[r, c] = token
    return out


def forward(tensors, images, window, eps=1e-5, gelu=exact_gelu):
    """Logits (batch, classes) of images (batch, size, size, 3), and every block's output (batch, tokens, dim)."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def linear(name):
        if f"{name}.0.weight" in t:
            return lambda x: linear(f"{name}.1")(linear(f"{name}.0")(x))
        return lambda x: x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    def norm(x, name):
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], eps)

    def run(image):
        kernel = t["patch_embed.proj.weight"]
        p, side = kernel.shape[-1], len(image) // kernel.shape[-1]
        x = np.zeros((side, side, len(kernel)))
        for r in range(side):
            for c in range(side):
                patch = image[r * p : (r + 1) * p, c * p : (c + 1) * p]
                x[r, c] = np.einsum("ijc,dcij->d", patch, kernel) + t["patch_embed.proj.bias"]
        x, features = norm(x, "patch_embed.norm"), []
        for stage in range(1 + max(int(found[1]) for name in t if (found := re.match(r"layers\.(\d+)\.", name)))):
            if stage:
                x = merge(x, f"layers.{stage}.downsample")
            for index in range(
                sum(bool(re.match(rf"layers\.{stage}\.blocks\.\d+\.norm1\.weight", name)) for name in t)
            ):
                x = block(x, f"layers.{stage}.blocks.{index}", index % 2)
                features.append(x.reshape(-1, x.shape[-1]))
        pooled = norm(features[-1], "norm").mean(0)
        return linear("head.fc")(pooled) if "head.fc.weight" in tensors else pooled, features

    def merge(x, name):
        """Four neighbours, down and then right, become one token."""
        x = np.pad(x, ((0, len(x) % 2), (0, len(x) % 2), (0, 0)))
        joined = np.concatenate([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
        return linear(f"{name}.reduction")(norm(joined, f"{name}.norm"))

    def block(x, name, odd):
        side = len(x)
        size, shift = (side, 0) if side <= window else (window, odd * (window // 2))
        missing = -side % size
        y = np.pad(norm(x, f"{name}.norm1"), ((0, missing), (0, missing), (0, 0)))
        table = t[f"{name}.attn.relative_position_bias_table"]
        y = attention(y, size, shift, linear(f"{name}.attn.qkv"), linear(f"{name}.attn.proj"), table)
        x = x + y[:side, :side]
        return x + linear(f"{name}.mlp.fc2")(gelu(linear(f"{name}.mlp.fc1")(norm(x, f"{name}.norm2"))))

    logits, features = zip(*(run(image) for image in np.asarray(images, np.float64)), strict=True)
    return np.stack(logits), [np.stack(feature) for feature in zip(*features, strict=True)]


def shapes(dim, depths, heads, patch, window, side, classes, mlp_dim=0):
    """timm's names and PyTorch's shapes; `side` is that of the first feature map, `mlp_dim` of its MLPs."""
    units = mlp_dim or 4 * dim
    found = {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    found |= {"patch_embed.norm.weight": (dim,), "patch_embed.norm.bias": (dim,)}
    for stage, depth in enumerate(depths):
        if stage:
            merging = f"layers.{stage}.downsample"
            found |= {f"{merging}.norm.weight": (4 * dim,), f"{merging}.norm.bias": (4 * dim,)}
            found |= {f"{merging}.reduction.weight": (2 * dim, 4 * dim)}
            dim, units, side = 2 * dim, 2 * units, (side + 1) // 2
        rows = (2 * min(window, side) - 1) ** 2
        for index in range(depth):
            block = f"layers.{stage}.blocks.{index}"
            for name, out, inner in (
                ("attn.qkv", 3 * dim, dim),
                ("attn.proj", dim, dim),
                ("mlp.fc1", units, dim),
                ("mlp.fc2", dim, units),
            ):
                found |= {f"{block}.{name}.weight": (out, inner), f"{block}.{name}.bias": (out,)}
            for name in ("norm1", "norm2"):
                found |= {f"{block}.{name}.weight": (dim,), f"{block}.{name}.bias": (dim,)}
            found[f"{block}.attn.relative_position_bias_table"] = (rows, heads[stage])
    found |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return found | {"head.fc.weight": (classes, dim), "head.fc.bias": (classes,)}
