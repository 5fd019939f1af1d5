"""Checkpoints of big_vision and of vision_transformer (AugReg): `big_vision:FILE.npz`.

Both use the tanh GELU, and images of mean and std 0.5. Read are classifiers on a class token; what pools otherwise
(attention pooling, the mean) or has a hidden layer before the head is refused. Names are translated to timm's.
"""

import functools
import re
from collections.abc import Mapping

import numpy as np

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import class_names
from lraqvit_jax.weights import Pretrained, tensors, wrappers
from lraqvit_jax.weights.layouts import Hints
from lraqvit_jax.weights.sources import timm

USUAL = {"crop_pct": 0.875, "interpolation": "bilinear"}
"""Of big_vision's resize_small(256)|central_crop(224). Models fine-tuned at other sizes often see the whole image."""
LEFT_OUT = ("opt/", "chrono/", "extra/")
"""Optimizer state and the like that a training checkpoint also holds."""
HALLMARK = "embedding/kernel"
IMAGENET = "imagenet2012"
"""What AugReg's files of ImageNet-1k have in their names."""
NAMES = (
    (r"^embedding/", "patch_embed.proj."),
    (r"^cls$", "cls_token"),
    (r"^(Transformer/(posembed_input/)?)?pos_embedding$", "pos_embed"),
    (r"^Transformer/encoder_norm/", "norm."),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"\.LayerNorm_0/", ".norm1."),
    (r"\.LayerNorm_[12]/", ".norm2."),
    (r"\.MultiHeadDotProductAttention_[01]/out/", ".attn.proj."),
    (r"\.MultiHeadDotProductAttention_[01]/(query|key|value)/", r".attn.\1."),
    (r"\.MlpBlock_[03]/Dense_0/", ".mlp.fc1."),
    (r"\.MlpBlock_[03]/Dense_1/", ".mlp.fc2."),
    (r"^head/", "head."),
    (r"\.scale$", ".weight"),
)


def read(name: str) -> Pretrained:
    """Reads a checkpoint.

    Raises:
        UserError: missing or broken file, a classifier that is none of ours, tensors that do not fit it.
    """
    path, source = files.locate(name), f"big_vision:{name}"
    try:
        values = wrappers.unwrapped(tensors.read(path), HALLMARK, source, "/")
        heads = _heads(values)
        values = rename(values, source)
    except (ValueError, IndexError, TypeError) as error:  # of shapes that no kernel of a ViT has
        raise UserError(f"{source} has tensors that no ViT has ({error}); name another file.") from error
    timm.warn_assumed(source, USUAL, "such", "set data.crop_pct and data.interpolation")
    hints = Hints("vit", heads=heads, gelu="tanh", embed_class=False)
    pretrained = timm.from_tensors(values, hints, source, tensors.sha256(path), {**timm.HALF, **USUAL})
    imagenet = pretrained.num_classes == class_names.IMAGENET and IMAGENET in path.stem
    return pretrained._replace(class_names=list(class_names.imagenet()) if imagenet else [])


def _heads(values: Mapping[str, np.ndarray]) -> int:
    """From a kernel (dim, heads, head_dim), of stacked blocks (depth, dim, heads, head_dim); 0 where there is none."""
    return next(
        (value.shape[-2] for key, value in values.items() if key.endswith("/query/kernel") and value.ndim > 2), 0
    )


def rename(values: Mapping[str, np.ndarray], source: str = "") -> dict[str, np.ndarray]:
    """Flax names and layouts, (in, out) and heads apart, to timm's.

    Raises:
        UserError: no class token, or a layer before the head.
    """
    values = {key.removeprefix("params/"): value for key, value in values.items() if not key.startswith(LEFT_OUT)}
    for wrong, what in (("MAPHead_0/", "attention pooling"), ("pre_logits/", "a hidden layer before the head")):
        if any(key.startswith(wrong) for key in values):
            raise UserError(f"{source} is a ViT with {what}, which can not be read; name one without.")
    if "cls" not in values:
        raise UserError(f"{source} has no class token (cls), which our ViT needs; name a ViT that has one.")
    renamed = {
        functools.reduce(lambda name, pair: re.sub(pair[0], pair[1], name), NAMES, key): value
        for key, value in _unstacked(values).items()
    }
    made = dict(_torch(key, value) for key, value in renamed.items() if not re.search(_QKV, key))
    for stem in sorted({match[1] for key in renamed if (match := re.match(rf"(.*){_QKV}", key))}):
        for end, new in (("kernel", "weight"), ("bias", "bias")):
            parts = [renamed.get(f"{stem}.attn.{part}.{end}") for part in ("query", "key", "value")]
            flat = [_flat(part, end) for part in parts if part is not None]
            if len(flat) == 3:  # otherwise what is missing is named by the strict conversion
                made[f"{stem}.attn.qkv.{new}"] = np.concatenate(flat)
    return made


_QKV = r"\.attn\.(query|key|value)\."


def _unstacked(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Blocks that were stacked for nn.scan, one by one."""
    stacked = "Transformer/encoderblock/"
    apart = {key: value for key, value in values.items() if not key.startswith(stacked)}
    for key, value in values.items():
        if key.startswith(stacked):
            for index, block in enumerate(value):
                apart[key.replace(stacked, f"Transformer/encoderblock_{index}/")] = block
    return apart


def _flat(value: np.ndarray, end: str) -> np.ndarray:
    """(dim, heads, head_dim) -> (heads * head_dim, dim); a bias (heads, head_dim) -> (heads * head_dim,)."""
    return value.reshape(value.shape[0], -1).T if end == "kernel" else value.reshape(-1)


def _torch(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """A kernel in PyTorch's layout, under the name `weight`; all else as it is."""
    if not key.endswith(".kernel"):
        return key, value
    if key == "patch_embed.proj.kernel":
        value = value.transpose(3, 2, 0, 1)
    else:
        value = value.reshape(-1, value.shape[-1]).T
    return key.removesuffix("kernel") + "weight", value
