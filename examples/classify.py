"""Names what is in photographs, with an exported ONNX file; needs onnxruntime, numpy and pillow alone.

python examples/classify.py DIR/export/NAME.onnx PHOTO...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def rgb(image):
    """Upright, RGB, 8 bits: of 16-bit grey the upper byte, of what is transparent the colours."""
    image.load()
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    image = ImageOps.exif_transpose(image)
    if deep:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def prepare(image, size, crop_pct, interpolation, mean, std, crop_mode="center", pixels=False):
    """PIL image -> float32 (size, size, 3): resized (its shorter side, or both), the centre cropped, normalized; or
    uint8, where the model reads pixels."""
    image, short = rgb(image), int(size / crop_pct)
    shape = image.size if crop_mode == "center" else (1, 1)
    width, height = (int(short * side / min(shape)) for side in shape)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    if pixels:
        return np.asarray(image)
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    return np.asarray(image, np.float32) * (1 / (255 * std)) - mean / std


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main(model, *photos):
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own have no common class.
        fail(f"{model} cannot be read as an ONNX model ({str(error).splitlines()[0]}); name another file.")
    metadata = session.get_modelmeta().custom_metadata_map
    if "preprocess" not in metadata:
        fail(f"{model} does not say how to prepare an image; name a file that lraqvit_jax has exported.")
    preprocess, names = json.loads(metadata["preprocess"]), json.loads(metadata.get("class_names", "[]")) or []
    preprocess["pixels"] = session.get_inputs()[0].type == "tensor(uint8)"
    for photo in photos:
        try:
            image = prepare(Image.open(photo), **preprocess)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            fail(f"{photo} cannot be read as an image ({error}); name another file.")
        logits = session.run(None, {"images": image[None]})[0][0]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(photo)
        for index in np.argsort(-logits)[:5]:
            print(f"  {shares[index]:6.1%}  {names[index] if index < len(names) else f'class {index}'}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        fail("name a model and a photo: classify.py MODEL.onnx PHOTO...")
    main(*sys.argv[1:])
