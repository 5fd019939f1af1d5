"""Images, tables and archives as they come: read the same way by every stage, or named, or passed over."""

import io
import os
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import images, labels, pipeline, skip, sources
from lraqvit_jax.data.augment import parse
from lraqvit_jax.data.images import BadImageError
from lraqvit_jax.data.preprocess import Preprocess


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(width, height, bits=8, colour=0):
    """A small PNG that claims these sides and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.fixture
def colours(rng):
    return Image.fromarray(rng.integers(0, 256, (6, 10, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_every_format_gives_the_rgb_that_pillow_gives(colours, kind, mode):
    content = encoded(colours.convert(mode), kind) if (kind, mode) != ("JPEG", "P") else encoded(colours, kind)
    got = images.decode(content)
    assert (got.mode, got.size) == ("RGB", (10, 6))
    assert np.array_equal(got, Image.open(io.BytesIO(content)).convert("RGB"))


def test_sixteen_bits_are_scaled_and_not_clipped():
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        got = np.asarray(images.decode(encoded(Image.fromarray(levels * 257), kind)))
        assert np.array_equal(got, np.repeat(levels[..., None], 3, 2))


def test_cmyk_is_converted(colours):
    got = np.asarray(images.decode(encoded(colours.convert("CMYK"), "TIFF")), int)
    assert np.abs(got - np.asarray(colours, int)).max() <= 1


def test_alpha_is_dropped_and_the_colours_stay(colours):
    faint = colours.copy()
    faint.putalpha(Image.new("L", faint.size, 3))
    assert np.array_equal(images.decode(encoded(faint)), colours)
    grey = colours.convert("L")
    assert np.array_equal(images.decode(encoded(Image.merge("LA", (grey, grey)))), grey.convert("RGB"))
    palette = colours.quantize(16)
    content = encoded(palette, transparency=bytes(range(0, 160, 10)))
    assert np.array_equal(images.decode(content), palette.convert("RGB"))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert images.decode(content).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).swapaxes(0, 1)),
        (8, lambda x: np.rot90(x, 1)),
        (9, lambda x: x),
    ],
)
def test_turned_photographs_are_upright_once(colours, kind, orientation, turned):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(colours, kind, exif=exif.tobytes(), **options)
    got = images.decode(content)
    assert np.array_equal(got, turned(np.asarray(colours)))
    assert np.array_equal(images.rgb(got), got)
    opened = Preprocess(8)(Image.open(io.BytesIO(content)))  # as a notebook does
    assert np.array_equal(opened, Preprocess(8)(got))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_turned_jpeg_is_what_pillow_makes_of_it(colours, mode, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(colours.convert(mode), "JPEG", exif=exif.tobytes())
    opened = Image.open(io.BytesIO(content))
    assert np.array_equal(images.decode(content), ImageOps.exif_transpose(opened).convert("RGB"))
    assert opened.getexif()[ExifTags.Base.Orientation] == orientation


def test_a_tag_beside_others_that_cannot_be_written_again_turns_the_image_once(colours):
    """A camera that stores the description of an image as a fraction: Pillow reads it and cannot write it."""
    entries = [(ExifTags.Base.ImageDescription, 5, 1, bytes(4)), (ExifTags.Base.Orientation, 3, 1, b"\6\0\0\0")]
    tags = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4)
    with pytest.raises(AttributeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(colours, exif=exif))))
    upright = images.decode(encoded(colours, exif=exif))
    assert np.array_equal(upright, np.rot90(np.asarray(colours), -1))
    assert np.array_equal(images.rgb(upright), upright)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "none of JPEG"),
        (b"file,label\n", "none of JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of JPEG"),
        (encoded(Image.effect_noise((50, 50), 50))[:900], "truncated"),
        (png_of(10_000, 9_000), "90,000,000|10,000 x 9,000"),
        (png_of(30_000, 30_000), "decompression bomb"),
        (png_of(2000, 10), "100 times"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "mode F"),
        (encoded(Image.new("I", (4, 4)), "TIFF"), "mode I"),
    ],
    ids=["empty", "text", "eps", "cut off", "large", "bomb", "strip", "float", "32 bits"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_refused_with_the_reason(content, word):
    with pytest.raises(ValueError, match=word):
        images.decode(content)


def folder(root, *contents):
    """Files 00.png, 01.png, ..., in two classes: given bytes, or a grey of their number."""
    for index, content in enumerate(contents):
        path = root / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("L", (8, 8), index)) if content is None else content)
    return str(root)


def test_a_misnamed_image_is_read_and_other_files_are_left_out(tmp_path, colours):
    path = folder(tmp_path, None, encoded(colours, "JPEG"))
    (tmp_path / "a" / "._00.png").write_bytes(b"of a Mac")
    (tmp_path / "a" / "more.png").mkdir()
    os.mkfifo(tmp_path / "b" / "pipe.png")
    source = sources.load(f"folder:{path}", "train")
    assert [source[index]["image"].size for index in range(len(source))] == [(8, 8), (10, 6)]


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = folder(tmp_path, None)
    with (tmp_path / "a" / "00.png").open("r+b") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse
    with pytest.raises(BadImageError, match="268,435,457 bytes"):
        sources.load(f"folder:{path}", "train")[0]


def test_a_disk_that_does_not_answer_is_no_bad_image(tmp_path):
    source = skip.load(f"folder:{folder(tmp_path / 'data', None, None)}", "train", "", tmp_path / "skipped.txt")
    (tmp_path / "data" / "a" / "00.png").unlink()
    with pytest.raises(UserError, match="look after the disk"):
        source[0]


def skipping(tmp_path, *contents, role="train"):
    path = folder(tmp_path / "data", *contents)
    return skip.load(f"folder:{path}", role, "", tmp_path / "skipped.txt")


def grey(example):
    return example["image"].getpixel((0, 0))[0], example["label"]


def test_in_training_the_next_image_takes_the_place_of_a_bad_one(tmp_path):
    """Sorted by class: 00 02 04 of the class 0, 01 03 05 of the class 1."""
    source = skipping(tmp_path, None, None, None, b"bad", None, b"bad")
    assert [grey(source[index]) for index in range(6)] == [(0, 0), (2, 0), (4, 0), (1, 1), (0, 0), (0, 0)]
    assert len(source) == 6
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        ["data.train", f"{tmp_path}/data/b/{name}.png"] for name in ("03", "05")
    ]


def test_training_batches_are_the_same_whoever_reads_them(tmp_path):
    """Once and again, in one process and in two: whole batches, no bad image among them."""
    contents = [b"bad" if index % 7 == 3 else None for index in range(28)]

    def batches(where, rows=None):
        source = skipping(tmp_path / where, *contents)
        read = pipeline.training(source, Preprocess(8), parse(""), batch_size=4, seed=1, rows=rows)
        return [np.round((next(read)["image"][:, 0, 0, 0] + 1) * 127.5).astype(int) for _ in range(14)]

    one, again = np.array(batches("one")), np.array(batches("again"))
    assert np.array_equal(one, again)
    assert not {3, 10, 17, 24} & set(one.ravel())
    two = [batches(f"process {index}", np.array([0, 1]) + 2 * index) for index in range(2)]
    assert np.array_equal(one, np.concatenate(two, 1))


def test_in_evaluation_bad_images_are_masked_and_the_counts_are_exact(tmp_path):
    contents = [b"bad" if index in (0, 9, 22) else None for index in range(23)]
    names = [*range(0, 23, 2), *range(1, 23, 2)]
    for rows in (np.arange(8), np.arange(4), np.arange(4, 8)):
        source = skipping(tmp_path / str(rows), *contents, role="eval")
        batches = list(pipeline.ordered(source, Preprocess(8), batch_size=8, rows=rows))
        real = np.concatenate([batch["mask"] for batch in batches])
        want = [name for row, name in enumerate(names) if row % 8 in rows and name not in (0, 9, 22)]
        assert {batch["image"].shape for batch in batches} == {(len(rows), 8, 8, 3)}
        shown = np.concatenate([batch["image"] for batch in batches])[real][:, 0, 0, 0]
        assert np.array_equal(np.round((shown + 1) * 127.5), want)


def test_threads_count_every_bad_image_once(tmp_path):
    source = skipping(tmp_path, *[b"bad" if index % 3 == 0 else None for index in range(60)], role="eval")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.at, list(range(60)) * 5))
    assert sum(example is None for example in found) == 100
    assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 20


@pytest.mark.parametrize("good", [0, 1])
def test_data_that_is_mostly_bad_stops_the_run(tmp_path, good):
    source = skipping(tmp_path / "few", *[None] * good, b"bad", b"bad", role="eval")
    with pytest.raises(UserError, match=r"are bad, more than half; .*skipped\.txt says why"):
        list(pipeline.ordered(source, Preprocess(8), batch_size=2))
    source = skipping(tmp_path / "many", *[b"bad"] * 25, *[None] * good)
    with pytest.raises(UserError, match=r"20 of 2[0-9] images read from data\.train are bad"):
        for index in range(25 + good):
            source.at(index)
    source = skipping(tmp_path / "all", b"bad", b"bad")
    with pytest.raises(UserError, match="no image that can be read"):
        source[1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_tables_of_any_spreadsheet(tmp_path, encoding, comma):
    rows = [("file", "label", "class_name"), ("é a.png", " 2 ", "chat"), ("b/c.png", "0", "")]
    (tmp_path / "labels.csv").write_bytes("\r\n".join(comma.join(row) for row in rows).encode(encoding))
    assert labels.read(tmp_path / "labels.csv")[:3] == (["é a.png", "b/c.png"], [2, 0], ["0", "1", "chat"])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"", "columns file and label"),
        (b"file,label,label\na.png,0,1\n", "columns file and label"),
        (b"file,label\n\xe9.png,0\n", "not text in UTF-8"),
        ("file,label\na.png,0\n".encode("utf-16-le"), "NUL bytes"),
        (b"file,label\na.png,0\na.png,0\n", "Line 3 .* again"),
        (b"file,label\na.png,999999999\n", "Line 2 .* label 999999999"),
        (b"file,label\na.png," + b"9" * 5000 + b"\n", "Line 2 .* label 9999"),
        ("file,label\na.png,²\n".encode(), "whole number"),
        (b"file,label\na.png,0.5\n", "whole number"),
        (b"file,label\na.png\n", "whole number"),
        (b"file,label\n/etc/passwd,0\n", "leads out"),
        (b"file,label\nx/../../a.png,0\n", "leads out"),
        (b"file,label\nC:\\a.png,0\n", "leads out"),
        (b'file,label\n"' + b"x" * 200_000 + b'",0\n', "field larger"),
        (b"file,label\n" + b"x" * 9000 + b".png,0\n", "not there"),
    ],
)
def test_a_broken_table_is_named(tmp_path, table, words):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_bytes(table)
    with pytest.raises(UserError, match=words) as error:
        sources.load(f"folder:{tmp_path}", "train")
    assert len(str(error.value)) < 1000


def zipped(root, *members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(root / "images.zip", "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    (root / "labels.csv").write_text(f"file,label\n{members[0][0]},0\n")
    return f"folder:{root}"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_not_plain_are_refused(tmp_path, colours):
    content = encoded(colours)
    assert sources.load(zipped(tmp_path, ("a.png", content), ("../b.png", content)), "train")[0]["label"] == 0
    for number, (members, compression, words) in enumerate(
        [
            ([("a.png", content), ("a.png", content)], zipfile.ZIP_STORED, "two members 'a.png'"),
            ([("a.png", content)], zipfile.ZIP_LZMA, "compression that is not read"),
            ([("../a.png", content)], zipfile.ZIP_STORED, "leads out"),
        ]
    ):
        root = tmp_path / str(number)
        root.mkdir()
        with pytest.raises(UserError, match=words):
            sources.load(zipped(root, *members, compression=compression), "train")
    damaged = bytearray((tmp_path / "images.zip").read_bytes())
    damaged[damaged.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "0" / "images.zip").write_bytes(damaged)
    with pytest.raises(UserError, match="encrypted member"):
        sources.load(f"folder:{tmp_path / '0'}", "calibration")


def test_a_member_that_is_too_large_or_damaged_is_a_bad_image(tmp_path):
    source = zipped(tmp_path, ("a.png", bytes(images.MAX_BYTES + 1)))
    assert (tmp_path / "images.zip").stat().st_size < 2**20
    with pytest.raises(BadImageError, match="more than"):
        sources.load(source, "train")[0]
    (tmp_path / "b").mkdir()
    source = zipped(tmp_path / "b", ("a.png", bytes(10_000)))
    content = bytearray((tmp_path / "b" / "images.zip").read_bytes())
    content[40] ^= 0xFF
    (tmp_path / "b" / "images.zip").write_bytes(content)
    with pytest.raises(BadImageError, match="cannot be read"):
        sources.load(source, "train")[0]


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "a\0b", "", "no/such"])
def test_a_folder_that_is_no_path_is_named(name):
    with pytest.raises(UserError):
        sources.load(f"folder:{name or 'nothing'}", "train")
