"""A ViT-S/14 in DINOv2's layout with a convolutional decoder: photographs to maps of the salient object.

Weights: backbone.safetensors (timm's names) and decoder.safetensors. Data: ecssd_1000_224 to evaluate on, photos_224 to
calibrate on.
"""

import io
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from lraqvit_jax.tasks import dense
from tests.real.case import Case, attend, heads, layer_norm, linear

DEPTH, HEAD, PATCH, SIDE = 12, 64, 14, 224
MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
BATCH = 20


def apply(params: Any, images: jax.Array) -> jax.Array:
    """Normalized images (b, 224, 224, 3) as maps (b, 224, 224), values in [0, 1]."""
    p, count = params["backbone"], images.shape[0]
    x = jax.lax.conv_general_dilated(
        images, p["patch_embed.proj.weight"], (PATCH, PATCH), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    x = x.reshape(count, -1, x.shape[-1]) + p["patch_embed.proj.bias"]
    x = jnp.concatenate([jnp.broadcast_to(p["cls_token"], (count, 1, x.shape[-1])), x], 1) + p["pos_embed"]
    for index in range(DEPTH):
        block = f"blocks.{index}"
        qkv = linear(p, f"{block}.attn.qkv", layer_norm(p, f"{block}.norm1", x, 1e-6))
        q, k, v = (heads(part, HEAD) for part in jnp.split(qkv, 3, axis=-1))
        x = x + p[f"{block}.ls1.gamma"] * linear(p, f"{block}.attn.proj", attend(q, k, v))
        y = linear(p, f"{block}.mlp.fc1", layer_norm(p, f"{block}.norm2", x, 1e-6))
        x = x + p[f"{block}.ls2.gamma"] * linear(p, f"{block}.mlp.fc2", jax.nn.gelu(y, approximate=False))
    x = layer_norm(p, "norm", x, 1e-6)[:, 1:]
    return decode(params["decoder"], x.reshape(count, SIDE // PATCH, SIDE // PATCH, -1))


def decode(p: Any, x: jax.Array) -> jax.Array:
    """Patches (b, 16, 16, 384) as maps: three transposed convolutions, a 1 x 1 convolution, bilinear to 224 x 224."""
    for index in (1, 2, 3):
        kernel = jnp.flip(p[f"upconv{index}.weight"], (2, 3))  # of kernel 4, stride 2, padding 1
        dimensions = ("NHWC", "IOHW", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), [(2, 2)] * 2, (2, 2), dimension_numbers=dimensions)
        x = x + p[f"upconv{index}.bias"]
        norm = f"bn{index}"
        scale = p[f"{norm}.weight"] / jnp.sqrt(p[f"{norm}.running_var"] + 1e-5)
        x = jax.nn.relu((x - p[f"{norm}.running_mean"]) * scale + p[f"{norm}.bias"])
    x = x @ p["final_conv.weight"][0, :, 0, 0] + p["final_conv.bias"][0]
    return jax.nn.sigmoid(jax.image.resize(x, (x.shape[0], SIDE, SIDE), "bilinear"))


def case(weights: pathlib.Path, data: pathlib.Path, examples: int, limit: int) -> Case:
    params = {part: load_file(weights / f"{part}.safetensors") for part in ("backbone", "decoder")}
    photos = zipfile.ZipFile(data / "photos_224" / "images.zip")
    images = [np.asarray(_image(photos, name)) for name in sorted(photos.namelist())[:examples]]
    batches = [_normalized(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    return Case(apply, params, batches, "features", lambda run: evaluate(run, data, limit), f"{len(images)} photos_224")


def evaluate(run: Callable[[Any], Any], data: pathlib.Path, limit: int = 0) -> dict[str, float]:
    """Largest F of β² = 0.3 and mean absolute error on ECSSD; a photograph is in the middle of a black square, and the
    places of the photograph alone count."""
    images, masks = (zipfile.ZipFile(data / "ecssd_1000_224" / f"{name}.zip") for name in ("images", "masks"))
    names = sorted(images.namelist())[: limit or None]
    maps, objects = [], []
    for start in range(0, len(names), BATCH):
        photos = [_image(images, name) for name in names[start : start + BATCH]]
        boxes = [((SIDE - photo.height) // 2, (SIDE - photo.width) // 2) for photo in photos]
        squares = np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)
        for square, photo, (top, left) in zip(squares, photos, boxes, strict=False):
            square[top : top + photo.height, left : left + photo.width] = photo
        found = np.asarray(run(_normalized(squares)))
        for values, photo, (top, left) in zip(found, photos, boxes, strict=False):
            maps.append(values[top : top + photo.height, left : left + photo.width])
    for name in names:
        mask = Image.open(io.BytesIO(masks.read(pathlib.Path(name).with_suffix(".png").name))).convert("L")
        objects.append(np.asarray(mask) > 127)
    return {
        "max F": dense.max_f_measure(maps, objects),
        "MAE": dense.mean_absolute_error(maps, objects),
        "images": len(maps),
    }


def _image(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(name))).convert("RGB")


def _normalized(images: Any) -> np.ndarray:
    return (np.asarray(images, np.float32) / np.float32(255) - MEAN) / STD
