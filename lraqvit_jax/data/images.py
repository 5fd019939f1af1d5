"""Image files to RGB: the one place where bytes that others wrote are decoded.

What comes out is RGB, 8 bits a channel, for training and for evaluation alike:

* grey, palette, CMYK, YCbCr, HSV: as Pillow converts them;
* alpha and transparent palettes: the channel is dropped and the colours stay, as timm, torchvision and TensorFlow do;
* 16-bit grey: the upper byte, as libpng and Pillow reduce 16-bit colour (Pillow itself clips grey at 255);
* 32-bit integers, floats and Lab: refused, since the file does not say which value is white;
* several frames: the first;
* turned photographs (EXIF orientation): upright. timm and torchvision leave them lying. Upright is what a viewer, a
  browser and the camera's owner see, and what most training images are; no photograph that the published accuracies of
  this project were measured on has the tag.
"""

import contextlib
import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, features

from lraqvit_jax.base.errors import UserError, short

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))
"""Pillow's decoders that are asked, whatever the suffix says ("JPEG" reads MPO too, "PPM" PGM and PBM). Others start
programs (EPS)."""
MAX_BYTES = 2**28
"""Of a file. What is larger is not read."""
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**30 // 12
"""Width times height, 89 million. Pillow warns from here on and refuses twice that. A decoded image takes 4 bytes a
pixel, and up to three times that while it is turned or converted."""
MAX_RATIO = 100
"""Of the longer side to the shorter, which `Preprocess` scales to the model's size."""
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
NO_RANGE = ("I", "F", "LAB")


class BadImageError(UserError):
    """An image whose content cannot be used. `data.on_bad_image` says what becomes of it.

    Attributes:
        name: of the image.
        where: the folder or set that has it.
        reason: why, in a few words.
    """

    def __init__(self, name: str, where: str, reason: str) -> None:
        self.name, self.where, self.reason = name, where, reason
        super().__init__(
            f"The image {short(name)} in {where} cannot be read ({short(reason)}); replace it, take it out, or set "
            "data.on_bad_image to skip."
        )


def decode(content: bytes) -> Image.Image:
    """The RGB image of a file's content.

    The size is checked before a pixel is decoded: beyond `content`, it takes at most 12 bytes for each of MAX_PIXELS.

    Raises:
        ValueError: with the reason.
    """
    try:
        with warnings.catch_warnings():  # Threads may leave this filter to one another, which harms nobody.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `checked` refuses what it warns of
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        return checked(image)
    except Exception as error:  # Of hostile bytes Pillow raises a dozen kinds.
        raise ValueError(_reason(error)) from error


def checked(image: Image.Image) -> Image.Image:
    """The image as `rgb` makes it; ValueError, before a pixel is decoded, for sides that no image should have."""
    if problem := _problem(*image.size):
        raise ValueError(problem)
    return rgb(image)


def _problem(width: int, height: int) -> str:
    """What is wrong with a size; "" if nothing."""
    if min(width, height) <= 0:
        return "it has no pixels"
    if width * height > MAX_PIXELS:
        return f"its {width:,} x {height:,} pixels are more than {MAX_PIXELS:,}"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"of {width:,} x {height:,} pixels, one side is more than {MAX_RATIO} times the other"
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode, turned or not, as the module says. What is RGB and upright comes back as it is.

    Raises:
        ValueError: the mode has no known range.
    """
    image.load()  # which turns a TIFF itself, and takes its tag away
    deep = image.mode in SIXTEEN or (image.mode == "I" and image.format == "PPM")  # which Pillow scales to 16 bits
    image = _upright(image)
    if deep:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in NO_RANGE:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, of no known range; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF data say that it stands; data that cannot be read say nothing."""
    with contextlib.suppress(Exception):  # Pillow parses EXIF, which may be anything, only when asked.
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = image.copy()
            try:
                ImageOps.exif_transpose(image, in_place=True)
            finally:
                image.info = {}  # Of data that cannot be written again, too, or it would be turned again.
    return image
