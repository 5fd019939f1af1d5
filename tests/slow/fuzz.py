"""Feeds damaged and invented input to everything that reads what others wrote.

    python -m tests.slow.fuzz --inputs 100000 --seed 0

Each reader starts from valid input: bytes are flipped, cut, spliced, repeated, overwritten by numbers at the limits, or
whole values replaced by ones of other kinds. A reader may answer with a result or with `UserError`, within SECONDS of
processor time an input; the process has at most BYTES of address space. What fails is written to --keep, by its digest,
and the exit code is 1.
"""

import argparse
import collections
import copy
import io
import itertools
import json
import pathlib
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from PIL import ExifTags, Image, ImageDraw

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.bench import quant
from lraqvit_jax.bench.lowrank import Table
from lraqvit_jax.config import Config
from lraqvit_jax.data import augment, images, labels, preprocess, sources
from lraqvit_jax.data.sources import folder
from lraqvit_jax.options.plan import PlanOptions
from lraqvit_jax.plan import cost
from lraqvit_jax.plan.check import check
from lraqvit_jax.plan.files import read_plan, to_json
from lraqvit_jax.plan.records import LayerPlan, LinearInfo
from lraqvit_jax.run import claim, metrics, planning, results
from lraqvit_jax.weights import artifacts, processors, tensors
from lraqvit_jax.weights.sources import big_vision, huggingface, timm
from tests.unit import numpy_vit

SECONDS = 5.0
BYTES = 6 * 2**30
"""Of address space, of which JAX and the threads' stacks take half before the first input."""
LIMITS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**53, 2**63 - 1, 2**64 - 1)
ODD = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "a", "8"),
    *([], {}, [0], ["a"], {"0": 0}, [[]], {"a": {}}, "\0", "\ud800", "x" * 5000, "../..", [0.5, 0.5, 0.5], [1] * 3),
)
WORDS = (
    *(b"file", b"label", b",", b";", b"\t", b'"', b"\n", b"\r", b"\0", b"\xff\xfe", b"..", b"/", b"999999999", b"-1"),
    *(b"{", b"[", b"[" * 5000, b"NaN", b"1e999", b"9" * 5000, b"|", b"(", b"?", b"&", b"=", b"images=", b" + folder:"),
    *(b"~", b"\xc2\xb2", b"\xef\xbb\xbf", b"PK\x03\x04", b"\x93NUMPY", b"'descr': '|O'", b"<f4", b"F32", b"BF16"),
)


class Reader(NamedTuple):
    """Something that reads: `read(content)`, valid content to start from, and the share of inputs it gets."""

    read: Callable[[bytes], object]
    seeds: list[bytes]
    share: float
    json: bool = False


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four changes of bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1) if rng.random() < 0.7 else rng.randrange(min(len(data), 64) + 1)
        end = min(len(data), place + rng.choice((1, 2, 4, 8, 32, 256)))
        kind = rng.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : None if rng.random() < 0.3 else end]
        elif kind == 2:
            data[place:place] = rng.choice(WORDS)
        elif kind == 3:
            data[place:end] = data[rng.randrange(len(data) + 1) :][: end - place]
        elif kind == 4:
            data[place:end] = rng.randbytes(end - place)
        elif kind == 5:
            number = struct.pack(rng.choice("<>") + "Q", rng.choice(LIMITS))
            width = rng.choice((1, 2, 4, 8))
            data[place : place + width] = number[:width] if rng.random() < 0.5 else number[-width:]
        else:
            data[place:place] = data[place:end] * rng.choice((1, 2, 50))
    return bytes(data[: 2**20])


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Values of other kinds, names that are gone or new."""
    found = json.loads(content)
    for _ in range(rng.randint(1, 3)):
        node = found
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            if rng.random() < 0.15:
                del node[key]
            elif isinstance(node, dict) and rng.random() < 0.1:
                node[rng.choice(("", "size", "rank", "x" * 500))] = copy.deepcopy(rng.choice(ODD))
            else:
                node[key] = copy.deepcopy(rng.choice(ODD))
            break
    return json.dumps(found).encode() if rng.random() < 0.98 else json.dumps(rng.choice(ODD)).encode()


def picture(mode: str, kind: str, **options: object) -> bytes:
    image = Image.effect_noise((23, 17), 60).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode != "L":
        image = image.convert(mode)
    if mode == "RGB":
        ImageDraw.Draw(image).rectangle((3, 3, 12, 9), (250, 30, 90))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif.tobytes()


def pictures() -> list[bytes]:
    """Small images of every format and mode that is read."""
    frames = [Image.new("P", (9, 9), index) for index in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], transparency=0)
    kinds = [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    kinds += [(mode, "JPEG") for mode in ("L", "RGB", "CMYK")]
    kinds += [(mode, "TIFF") for mode in ("RGB", "I;16", "CMYK", "F")]
    kinds += [("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "BMP"), ("P", "BMP"), ("P", "GIF")]
    found = [picture(mode, kind) for mode, kind in kinds] + [file.getvalue()]
    found += [picture("RGB", "JPEG", exif=_exif(), progressive=True), picture("P", "PNG", transparency=b"\0\x80")]
    names = ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")
    return found + [picture("RGB", "TIFF", compression=name) for name in names]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "cls_token": rng.normal(size=(1, 1, 8)).astype(np.float32),
        "blocks.0.attn.qkv.weight": rng.normal(size=(24, 8)).astype(np.float16),
        "steps": np.arange(5),
        "scalar": np.array(3.0),
    }


def npz(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, **arrays())
    return file.getvalue()


def archive(compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as members:
        members.writestr("a.png", picture("RGB", "PNG"))
        members.writestr("sub/b.png", picture("L", "PNG"))
    return file.getvalue()


def readers(where: pathlib.Path) -> dict[str, Reader]:
    """Every reader, each with a file or folder of its own below `where`."""

    def file(name: str, read: Callable[[pathlib.Path], object]) -> Callable[[bytes], object]:
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)

        def run(content: bytes) -> object:
            path.write_bytes(content)
            return read(path)

        return run

    def text(read: Callable[[str], object]) -> Callable[[bytes], object]:
        return lambda content: read(content.decode("utf-8", "surrogateescape"))

    def opened(path: pathlib.Path) -> None:
        found = folder.load(str(path.parent), "train")
        for index in range(len(found)):
            found[index]

    def weights(read: Callable[[str], object]) -> Callable[[pathlib.Path], object]:
        return lambda path: read(str(path))

    def result(path: pathlib.Path) -> None:
        found = results.read(path.parent)
        results.table(found)

    def table(path: pathlib.Path) -> None:
        milliseconds = cost.latency(cost.table(str(path)))
        milliseconds(LAYER, 8)

    def meta(path: pathlib.Path) -> None:
        artifacts.build(artifacts.read_meta(path.parent.parent))

    for name in ("labels", "zip"):
        (where / name / "images" / "sub").mkdir(parents=True)
        (where / name / "images" / "a.png").write_bytes(picture("RGB", "PNG"))
        (where / name / "images" / "sub" / "b.png").write_bytes(picture("L", "PNG"))
    (where / "zip" / "labels.csv").write_text("file,label\na.png,0\nsub/b.png,1\n")
    hf = where / "hf"
    hf.mkdir()
    safetensors.numpy.save_file({"classifier.weight": np.ones((2, 8), np.float32)}, hf / "model.safetensors")
    (hf / "config.json").write_bytes(CONFIG)
    npzs = [npz(np.savez), npz(np.savez_compressed)]
    safe = [safetensors.numpy.save(arrays())]
    tables = [b"file,label\na.png,0\nsub/b.png,1\n", b"file;label;class_name\r\na.png;3;cat\r\n"]
    tables += [tables[0].decode().encode("utf-16"), b'\xef\xbb\xbffile\tlabel\n"a.png"\t1\n']
    vit_npz = io.BytesIO()
    np.savez(vit_npz, **BIG_VISION)
    return {
        "images.decode": Reader(decoded, pictures(), 0.12),
        "labels.csv": Reader(file("table/labels.csv", labels.read), tables, 0.15),
        "labels.csv + images": Reader(file("labels/labels.csv", opened), tables, 0.01),
        "images.zip": Reader(file("zip/images.zip", opened), [archive(0), archive(8)], 0.03),
        "safetensors": Reader(file("a.safetensors", tensors.read), safe, 0.08),
        "npz": Reader(file("a.npz", tensors.read), npzs, 0.06),
        "timm:": Reader(file("timm/vit.safetensors", weights(timm.read)), [safetensors.numpy.save(VIT)], 0.005),
        "big_vision:": Reader(file("bv.npz", weights(big_vision.read)), [vit_npz.getvalue()], 0.01),
        "huggingface: config": Reader(
            file("hf/config.json", lambda path: huggingface.read(str(path.parent))), [CONFIG], 0.02, True
        ),
        "huggingface: preprocessor": Reader(
            file("hf_card.json", lambda path: processors.preparation(huggingface._json(path), "vit")),
            [
                b'{"size": {"height": 224, "width": 224}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],'
                b'"resample": 2, "do_center_crop": true, "crop_size": 224}'
            ],
            0.05,
            True,
        ),
        "timm card": Reader(
            file("card/config.json", lambda path: preprocess_of(timm.read_card(path, "vit"))),
            [
                b'{"architecture": "vit_tiny", "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.9,'
                b'"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}}'
            ],
            0.05,
            True,
        ),
        "plan.json": Reader(
            file("plan.json", lambda path: check(read_plan(path), [LAYER])),
            [json.dumps(to_json({LAYER.path: LayerPlan("low_rank", 8)})).encode()],
            0.07,
            True,
        ),
        "config.json": Reader(
            file("work/config.json", claimed),
            [b'{"config": {"seed": 0}, "plan_sha256": "ab", "provisional": true}'],
            0.04,
            True,
        ),
        "results.json": Reader(file("work/results.json", result), [RESULTS], 0.06, True),
        "quant.json": Reader(
            file("quant.json", lambda path: Table(path, quant.KEYS)),
            [b'{"schema": 1, "rows": [{"source": "a", "width": "w8a8", "name": "n", "seed": 0, "top1": 1.0}]}'],
            0.03,
            True,
        ),
        "metrics.jsonl": Reader(
            file("metrics.jsonl", lambda path: metrics.MetricsLog(path, "a", 1)),
            [b'{"run": "a", "step": 1, "loss": 2.5}\n{"run": "a", "step": 2, "loss": 2.5}\n'],
            0.03,
        ),
        "meta": Reader(file("artifact/meta/data.json", meta), [META], 0.03, True),
        "latency.json": Reader(file("latency.json", table), [LATENCY], 0.05, True),
        "preprocess": Reader(
            file("preprocess.json", lambda path: preprocess.from_json(preprocess.files.json_object(path, "mend it"))),
            [json.dumps(preprocess.Preprocess(32).to_json()).encode()],
            0.05,
            True,
        ),
        "augment": Reader(text(augment.parse), AUGMENT, 0.03),
        "source string": Reader(text(source_of), [b"folder:x?labels=none&images=5", b"embedded:digits?images=9"], 0.05),
        "weights string": Reader(text(weights_of), [b"timm:x.npz", b"huggingface:/x", b"big_vision:~/a.npz"], 0.03),
        "bench width": Reader(text(quant.bits_of), [b"w4a8", b"w8a8"], 0.03),
    }


def decoded(content: bytes) -> object:
    """As `folder` reads: ValueError is what it turns into BadImageError."""
    try:
        return preprocess.Preprocess(8)(images.decode(content))
    except ValueError as error:
        raise UserError(str(error).replace("\n", " ")) from error


def preprocess_of(card: timm.Card) -> object:
    """What `timm.from_tensors` makes of a card."""
    return preprocess.Preprocess(card.hints.image_size or 224, **timm.preparation(card, "a card"))


def claimed(path: pathlib.Path) -> None:
    """What `open_workspace` asks of config.json."""
    claim.check_same(Config(), path.parent)
    planning.provisional(Config(plan=PlanOptions(method="energy")), path.parent)
    claim.edited(path.parent)


def source_of(name: str) -> None:
    """A source by its name; tfds, which may look names up in the network, is left out."""
    if "tfds:" not in name:
        sources.load(name, "train")


def weights_of(name: str) -> None:
    """Weights by their name; ids of the hub are left out."""
    kind, _, rest = name.partition(":")
    found = {"timm": timm, "huggingface": huggingface, "big_vision": big_vision}.get(kind)
    if found and rest.count("/") != 1:
        found.read(rest)


LAYER = LinearInfo("blocks_0/mlp/fc1", 192, 768, 197, "mlp")
AUGMENT = [
    b"random_affine(10, 0.1, 0.9, 1.1)|random_crop(2)|flip_lr(0.5)",
    b"random_resized_crop(0.08, 1)|flip_lr|rand_augment(2, 9, 0.5)|color_jitter(0.4, 0.4, 0.4)|random_erasing(0.25)",
]
CONFIG = json.dumps(
    {
        **{"model_type": "vit", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "qkv_bias": True},
        "id2label": {"0": "cat", "1": "dog"},
    }
).encode()
_ROW = {"params": 5, "linear_gflops": 0.1, "size_mb": 2.5, "top1": 50.0, "top5": 90.0, "n_images": 100, "seconds": 0.5}
RESULTS = json.dumps(
    {"schema": 1, "model": "vit_pico", "rows": [{"name": name, "notes": "", **_ROW} for name in ("dense", "lra")]}
).encode()
META = json.dumps(
    {
        **{"schema": 1, "name": "dense", "model": "vit_pico", "num_classes": 10, "class_names": ["a"], "notes": ""},
        "preprocess": preprocess.Preprocess(8).to_json(),
        "plan": to_json({"blocks_0/mlp/fc1": LayerPlan("low_rank", 8), "head": LayerPlan()}),
    }
).encode()
LATENCY = json.dumps(
    {"layers": [{"features_in": 192, "features_out": 768, "tokens": 197, "ms": {"0": 1.0, "8": 0.2, "64": 0.7}}]}
).encode()
VIT = numpy_vit.random_tensors(np.random.default_rng(0), dim=32, depth=2, patch=4, side=2, classes=2)
BIG_VISION = {
    "cls": np.zeros((1, 1, 8), np.float32),
    "embedding/kernel": np.zeros((2, 2, 3, 8), np.float32),
    "pos_embedding": np.zeros((1, 4, 8), np.float32),
    "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": np.zeros((2, 8, 2, 4), np.float32),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/bias": np.zeros((2, 4), np.float32),
    "head/kernel": np.zeros((8, 2), np.float32),
}


class Tally:
    """What one reader answered: results, refusals, failures, and the slowest input in seconds."""

    def __init__(self) -> None:
        self.answers: collections.Counter[str] = collections.Counter()
        self.slowest, self.seconds = 0.0, 0.0


def try_one(reader: Reader, content: bytes) -> tuple[str, float]:
    """("read" | "refused" | what went wrong, seconds of processor time)"""
    started = time.process_time()
    try:
        reader.read(content)
        answer = "read"
    except UserError as error:
        answer = "refused" if "\n" not in str(error) and len(str(error)) < 20_000 else "a message of more than a line"
    except Exception as error:
        place = error.__traceback__
        while place.tb_next:
            place = place.tb_next
        where = pathlib.Path(place.tb_frame.f_code.co_filename).name
        answer = f"{type(error).__name__} at {where}:{place.tb_lineno}: {error}"
    seconds = time.process_time() - started
    return (answer if seconds < SECONDS else f"took {seconds:.1f} s"), seconds


def inputs(reader: Reader, rng: random.Random) -> bytes:
    seed = rng.choice(reader.seeds)
    if reader.json and rng.random() < 0.7:
        return mutate_json(seed, rng)
    content = mutate(seed, rng)
    return mutate(content, rng) if rng.random() < 0.2 else content


def fuzz(count: int, seed: int, keep: pathlib.Path | None = None) -> dict[str, Tally]:
    """Feeds about `count` inputs; returns what every reader answered."""
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as where, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about damaged files
        found = readers(pathlib.Path(where))
        total = sum(reader.share for reader in found.values())
        for name, reader in found.items():
            rng, tally = random.Random(f"{seed} {name}"), Tally()
            tallies[name] = tally
            fed = itertools.chain(reader.seeds, (inputs(reader, rng) for _ in itertools.count()))
            for content in itertools.islice(fed, max(1, round(count * reader.share / total))):
                answer, seconds = try_one(reader, content)
                tally.answers[answer] += 1
                tally.slowest, tally.seconds = max(tally.slowest, seconds), tally.seconds + seconds
                if answer not in ("read", "refused") and keep and tally.answers[answer] == 1:
                    keep.mkdir(parents=True, exist_ok=True)
                    number = len([one for one in tally.answers if one not in ("read", "refused")])
                    (keep / f"{name.replace('/', '_').replace(' ', '_')}-{number}").write_bytes(content)
    return tallies


def failures(tallies: dict[str, Tally]) -> list[str]:
    return [
        f"{name}: {answer} ({count} times)"
        for name, tally in tallies.items()
        for answer, count in tally.answers.items()
        if answer not in ("read", "refused")
    ]


def table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'reader':<26} {'inputs':>8} {'read':>8} {'refused':>8} {'failed':>7} {'CPU s':>7} {'slowest ms':>11}"]
    for name, tally in tallies.items():
        count, read, refused = tally.answers.total(), tally.answers["read"], tally.answers["refused"]
        lines.append(
            f"{name:<26} {count:>8,} {read:>8,} {refused:>8,} {count - read - refused:>7,} {tally.seconds:>7.1f} "
            f"{1000 * tally.slowest:>11.1f}"
        )
    total = sum(tally.answers.total() for tally in tallies.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds = sum(tally.seconds for tally in tallies.values())
    lines.append(f"{total:,} inputs, {seconds:.1f} s of one core, peak {peak:,.0f} MiB")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the inputs that failed")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    tallies = fuzz(options.inputs, options.seed, options.keep)
    print(table(tallies))
    found = failures(tallies)
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
