"""A compressed ViT or DeiT in plain PyTorch, from DIR/export/NAME.safetensors; needs torch and safetensors alone.

    model, said = load("DIR/export/NAME.safetensors")
    logits = model(images)  # (batch, 3, size, size), prepared as said["preprocess"] has it, as timm's models read them

The layout is "factors": a layer X of timm's is X.weight, or a pair X.0.weight and X.1.weight, and where a factor has an
identity block, X.basis says which channels it copies. Here such blocks are put back as ones, so that a pair is two
nn.Linear, and one product stays one. Heads may be narrower than dim / heads, query and key otherwise than value. Of
kernels in int8 the values they stand for are taken: activations are not rounded. (The layout "expanded" needs nothing
of this: timm.create_model(...).load_state_dict(load_file(path)).)
"""

import json

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

OTHERS = ("layers.0.", "reg_token", "norm_pre.", "attn_pool.", "blocks.0.attn.q_norm.", "project.")
GELUS = {"tanh": "tanh", "quick": None, "swiglu": None}


def factor(tensors, name):
    """The matrix (n, m) of a layer or a first factor, ones where a basis copies inputs; of a second one as stored."""
    weight, basis = tensors[f"{name}.weight"].flatten(1), tensors.get(f"{name}.basis")
    if f"{name}.weight_scale" in tensors:
        weight = weight * tensors[f"{name}.weight_scale"]  # (n, 1)
    smooth = tensors.get(f"{name}.input_smooth")
    if basis is None or name.endswith(".1"):
        return weight if smooth is None else weight / smooth.flatten()
    heads = torch.atleast_2d(basis.long())
    whole = weight.new_zeros(len(weight), weight.shape[1] + heads.shape[1])
    for rows, stored, copied in zip(whole.chunk(len(heads)), weight.chunk(len(heads)), heads, strict=True):
        rest = torch.ones(whole.shape[1], dtype=torch.bool)
        rest[copied] = False
        rows[:, rest] = stored if smooth is None else stored / smooth[rest]
        rows[torch.arange(len(copied)), copied] = 1
    return whole


def second(tensors, name):
    """The second factor of a pair, (n, r), whose first outputs, or those of a basis, may be what it reads."""
    weight, bias = factor(tensors, f"{name}.1"), tensors.get(f"{name}.1.bias")
    basis, r = tensors.get(f"{name}.1.basis"), weight.shape[1]
    if basis is None and (bias is None or len(bias) == len(weight)):
        return weight, bias
    copied = torch.arange(r) if basis is None else basis.long()
    whole, rest = weight.new_zeros(len(weight) + r, r), torch.ones(len(weight) + r, dtype=torch.bool)
    rest[copied] = False
    whole[copied], whole[rest] = torch.eye(r), weight
    return whole, bias


def linear(tensors, name):
    def one(weight, bias):
        made = nn.Linear(*reversed(weight.shape), bias is not None, device="meta")
        made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
        return made

    if f"{name}.0.weight" in tensors:
        return nn.Sequential(one(factor(tensors, f"{name}.0"), None), one(*second(tensors, name)))
    return one(factor(tensors, name), tensors.get(f"{name}.bias"))


def norm(tensors, name):
    made = nn.LayerNorm(len(tensors[f"{name}.weight"]), 1e-6)
    made.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})
    return made


class Block(nn.Module):
    def __init__(self, tensors, name, dim, heads, gelu):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        parts = [part for part in ("qkv", "query", "key", "value") if self.has(tensors, f"{name}.attn.{part}")]
        self.reads = nn.ModuleList(linear(tensors, f"{name}.attn.{part}") for part in parts)
        self.proj, self.norm1, self.norm2 = (
            make(tensors, f"{name}.{part}") for make, part in ((linear, "attn.proj"), (norm, "norm1"), (norm, "norm2"))
        )
        self.mlp = nn.Sequential(linear(tensors, f"{name}.mlp.fc1"), nn.GELU(gelu), linear(tensors, f"{name}.mlp.fc2"))
        self.gammas = nn.ParameterList(tensors.get(f"{name}.ls{index}.gamma", torch.ones(())) for index in (1, 2))

    @staticmethod
    def has(tensors, name):
        return f"{name}.weight" in tensors or f"{name}.0.weight" in tensors

    def forward(self, x):
        y = [read(self.norm1(x)) for read in self.reads]
        y = y[0].chunk(3, -1) if len(y) == 1 else y
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in y)
        y = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        x = x + self.gammas[0] * self.proj(y.transpose(1, 2).flatten(2))
        return x + self.gammas[1] * self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, tensors, heads=0, gelu="none"):
        super().__init__()
        place = tensors["pos_embed"]
        dim = place.shape[-1]
        patch = tensors["patch_embed.proj.weight"]
        self.patch = nn.Parameter(factor(tensors, "patch_embed.proj").view(patch.shape))
        self.patch_bias = nn.Parameter(tensors["patch_embed.proj.bias"])
        first = torch.cat([tensors[name] for name in ("cls_token", "dist_token") if name in tensors], 1)
        size = round(place.shape[1] ** 0.5)
        if size * size != place.shape[1]:  # Else the tokens that come first have no position of their own.
            first, place = first + place[:, : first.shape[1]], place[:, first.shape[1] :]
        self.first, self.place = nn.Parameter(first), nn.Parameter(place)
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        blocks = [Block(tensors, f"blocks.{index}", dim, heads or dim // 64, gelu) for index in range(depth)]
        self.blocks, self.norm = nn.Sequential(*blocks), norm(tensors, "norm")
        self.heads = nn.ModuleList(linear(tensors, name) for name in ("head", "head_dist") if f"{name}.bias" in tensors)

    def forward(self, images):
        x = functional.conv2d(images, self.patch, self.patch_bias, stride=self.patch.shape[-1])
        x = x.flatten(2).transpose(1, 2) + self.place
        x = self.norm(self.blocks(torch.cat([self.first.expand(len(x), -1, -1), x], 1)))
        logits = [head(x[:, index]) for index, head in enumerate(self.heads)]
        return sum(logits) / len(logits) if logits else x[:, 0]


def load(path, heads=0):
    """The model, in evaluation mode, and what the file says of itself: preprocess, class_names, plan, ...

    Args:
        path: of a file with the layout "factors" or "expanded".
        heads: of the attention; 0 is dim / 64, as timm's ViT and DeiT have it from tiny to large.

    Raises:
        ValueError: a model that is none of these, kernels of 4 or 6 bits, or in groups.
    """
    with safetensors.safe_open(path, "pt") as file:
        said = {key: text if key in ("format", "model") else json.loads(text) for key, text in file.metadata().items()}
    tensors, model = safetensors.torch.load_file(path), said["model"]
    groups = [name for name, value in tensors.items() if name.endswith(".weight_scale") and value.shape[1] > 1]
    others = [name for name in tensors if name.startswith(OTHERS) or name.endswith(".weight_packed")]
    odd = next(iter(others + groups), "")
    words = [word for word in model.split("_") if word in ("avg", "normavg", "concat", "map", "first")]
    gelu = next((GELUS[word] for word in model.split("_") if word in GELUS), "none")
    if odd or words or gelu is None or "cls_token" not in tensors:
        what = odd or (words or ["its activation or its tokens"])[0]
        raise ValueError(f"{path} holds {model} with {what}, which this example has not; run its ONNX file instead.")
    return Vit(tensors, heads, gelu).eval(), said
