"""Names what is in photographs, with an exported file; needs numpy, pillow and the file's runtime alone.

python examples/classify.py DIR/export/NAME.onnx PHOTO...

    NAME.onnx                 pip install onnxruntime
    NAME.VARIANT.tflite       pip install ai-edge-litert
    NAME.stablehlo            pip install jax flatbuffers; beside it NAME.json, as exported
    NAME.mlirbc, NAME.mlir    pip install jax, likewise
    NAME.safetensors          pip install torch safetensors; beside classify.py torch_vit.py
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image, ImageOps


def onnx(path):
    """Each of these: a function from images (1, size, size, 3) to logits (1, classes), and what the file says."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(None, {"images": images})[0], {key: said[key] for key in said}


def litert(path):
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    model = schema.Model.GetRootAs(pathlib.Path(path).read_bytes())
    entries = {model.Metadata(index).Name(): model.Metadata(index) for index in range(model.MetadataLength())}
    own = entries.get(b"lraqvit_jax")
    said = json.loads(model.Buffers(own.Buffer()).DataAsNumpy().tobytes()) if own else {}

    def run(images):
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run, said


def exported(path):
    import jax.export

    return jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call, card(path)


def module(path):
    """StableHLO by itself, compiled by PJRT."""
    import jax
    from jax.extend import backend
    from jaxlib import xla_client

    device, options = jax.devices()[0], xla_client.CompileOptions()
    devices = xla_client.DeviceList((device,))
    program = backend.get_backend().compile_and_load(pathlib.Path(path).read_bytes(), devices, options)

    def run(images):
        result = program.execute_sharded([jax.device_put(images, device)])
        return np.asarray(result.disassemble_into_single_device_arrays()[0][0])

    return run, card(path)


def pytorch(path):
    import torch
    import torch_vit

    model, said = torch_vit.load(path)

    def run(images):
        with torch.inference_mode():
            return model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    return run, said


def card(path):
    beside = pathlib.Path(path).with_suffix(".json")
    return json.loads(beside.read_text()) if beside.exists() else {}


RUNTIMES = {".onnx": onnx, ".tflite": litert, ".stablehlo": exported, ".mlirbc": module, ".mlir": module}
RUNTIMES[".safetensors"] = pytorch
KEYS = ("preprocess", "class_names", "input")
KINDS = {".onnx": "an ONNX", ".tflite": "a LiteRT", ".safetensors": "a safetensors"}


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
    suffix = pathlib.Path(model).suffix
    suffix = suffix if suffix in RUNTIMES else ".onnx"
    try:
        run, said = RUNTIMES[suffix](model)
    except ImportError as error:
        fail(f"{model} needs a package that is not here ({error}); classify.py says which at its top.")
    except Exception as error:  # The runtimes' own have no common class.
        kind = KINDS.get(suffix, "a StableHLO")
        fail(f"{model} cannot be read as {kind} model ({str(error).splitlines()[0]}); name another file.")
    if "preprocess" not in said:
        fail(f"{model} does not say how to prepare an image; name a file that lraqvit_jax has exported.")
    preprocess, names, source = (json.loads(one) if isinstance(one, str) else one for one in map(said.get, KEYS))
    names, pixels = names or [], (source or {}).get("dtype") == "uint8"
    for photo in photos:
        try:
            image = prepare(Image.open(photo), **preprocess, pixels=pixels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            fail(f"{photo} cannot be read as an image ({error}); name another file.")
        logits = np.asarray(run(image[None]))[0]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(photo)
        for index in np.argsort(-logits)[:5]:
            print(f"  {shares[index]:6.1%}  {names[index] if index < len(names) else f'class {index}'}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        fail("name a model and a photo: classify.py MODEL PHOTO...")
    main(*sys.argv[1:])
