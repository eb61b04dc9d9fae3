"""Image files to RGB pixels. Every way a file can be bad ends in one exception, ImageError, with a short reason.

The format is told by the first bytes, never by the file's name. Pillow's plugin classes are called directly instead of
`Image.open`: only the formats listed here are ever tried, the pixel limit is the caller's alone, and no global Pillow
setting is read or changed, so threads may decode at the same time. Colour profiles (ICC) are not applied.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from activeseg.errors import DataError, ImageError
from activeseg.records import InputPolicy

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read; anything else is refused."""

Pixels = npt.NDArray[np.uint8]

_REASON_LENGTH = 200
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258
_PHOTOMETRIC_TAG = 262
_WHITE_IS_ZERO = 0
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_PLUGINS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "BMP": BmpImageFile,
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a file holds; width and height in pixels after its EXIF orientation was applied."""

    width: int
    height: int
    format: str


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An image as an input policy wants it. pixels: (h, w, 3) uint8. size: (H, W) of the image itself, upright."""

    pixels: Pixels
    size: tuple[int, int]


def decode_image(data: bytes, *, max_pixels: int) -> Pixels:
    """Pixels (H, W, 3) uint8 RGB of an encoded image, upright (EXIF orientation applied).

    Grey and palette images become RGB, CMYK is converted without a profile, 16-bit samples keep their upper 8 bits.
    Transparent pixels are laid over white, as an annotator sees them in a browser; the colours hidden under them never
    count. Of animated or multi-page files the first frame is taken.
    Raises ImageError, with a reason of at most 200 printable characters, on anything else: an unknown format, more than
    `max_pixels` pixels (known from the header, before decoding), truncated or damaged data, 32-bit or float samples.
    MemoryError where there is none left.
    """
    return decode_sized(data, max_pixels)[0].pixels


def decode_input(data: bytes, policy: InputPolicy, *, max_pixels: int) -> Decoded:
    """Pixels as `policy` wants them: its short side and, with `reduced`, JPEGs decoded at a fraction of their size.

    Reduced are JPEGs whose shorter side is at least twice the policy's: to the half, quarter or eighth of their size that is
    still no smaller, by scaling the discrete cosine transform (libjpeg's, through Pillow's draft mode). The rest of the way
    is `resize_short_side`'s, and so is all of it for any other image. The size comes out the same both ways.
    Raises ImageError exactly where `decode_image` does, but for damage in the part of a JPEG that is left out.
    """
    return decode_sized(data, max_pixels, policy.short_side, draft=policy.reduced)[0]


def decode_sized(data: bytes, max_pixels: int, short_side: int | None = None, *, draft: bool = False) -> tuple[Decoded, str]:
    """`decode_image` and `decode_input` in one, and the format. draft: JPEGs may be decoded at a fraction of their size."""
    decoded, name = _decode(data, max_pixels, short_side if draft else None)
    if short_side is None:
        return decoded, name
    check_resized(decoded.size, short_side, max_pixels)
    return Decoded(_resize(decoded.pixels, _resized(decoded.size, short_side)), decoded.size), name


def probe(data: bytes, *, max_pixels: int) -> ImageInfo:
    """Size and format of an image that decodes completely. Raises ImageError exactly where `decode_image` does."""
    decoded, name = decode_sized(data, max_pixels)
    return ImageInfo(decoded.size[1], decoded.size[0], name)


def resize_short_side(image: Pixels, short_side: int | None) -> Pixels:
    """(H, W, 3) uint8 with the shorter side `short_side` pixels, aspect kept; None or its own size returns `image`.

    Pillow's BILINEAR, which averages over the whole source area when shrinking, without an integer reduction first
    (`reducing_gap`): that saves a tenth of the time at 12 megapixels and changes the pixels.
    """
    if short_side is None:
        return image
    return _resize(image, _resized((image.shape[0], image.shape[1]), short_side))


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(H, W) with the shorter one `short_side`, aspect kept."""
    scale = short_side / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def detect_format(data: bytes) -> str | None:
    """Name of the format the first bytes announce, or None where it is not one of FORMATS."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if data.startswith(b"BM") else None


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError where a size is empty or larger than `max_pixels`."""
    if width < 1 or height < 1:
        raise ImageError(f"image of {width}x{height} has no pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"image of {width}x{height} has {width * height} pixels, more than the {max_pixels} allowed; "
            "shrink it or raise [pool] max_pixels"
        )


def check_resized(size: tuple[int, int], short_side: int, max_pixels: int) -> None:
    """Raise ImageError where an image of `size` has more than `max_pixels` pixels once its shorter side is `short_side`.

    A strip of one pixel's width and a million's length is small until then.
    """
    height, width = _resized(size, short_side)
    if height * width > max_pixels:
        raise ImageError(
            f"image of {size[1]}x{size[0]} would have {height * width} pixels at [model] short_side = {short_side}, more than "
            f"the {max_pixels} allowed; crop it or raise [pool] max_pixels"
        )


def turn_upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied. An unreadable EXIF block counts as none, as in browsers."""
    return _turn(image, _orientation(image))


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) else 1


@contextmanager
def decoding_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on damaged bytes of format `name` into an ImageError with a short reason.

    But for MemoryError: behind the wall, where memory is limited, it says something of the bytes; elsewhere it does not.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # plugins let almost any exception through on hostile bytes
        raise ImageError(_reason(name, error)) from error


def _decode(data: bytes, max_pixels: int, short_side: int | None = None) -> tuple[Decoded, str]:
    """short_side: a JPEG at least twice as large is decoded reduced, and comes with this one."""
    name = detect_format(data)
    if name is None:
        raise ImageError(_unknown(data))
    with decoding_errors(name), _PLUGINS[name](BytesIO(data)) as image:
        width, height = image.size
        check_pixels(width, height, max_pixels)
        # Does nothing but for JPEG. The box is the image's part of what is decoded, whose last blocks may reach beyond it.
        drafted = image.draft(None, (short_side, short_side)) if short_side else None
        image.load()
        orientation = _orientation(image)
        if short_side and drafted and image.size != (width, height):
            check_resized((height, width), short_side, max_pixels)
            rows, columns = _resized((height, width), short_side)
            upright = _turn(_to_rgb(image).resize((columns, rows), Image.Resampling.BILINEAR, drafted[1]), orientation)
        else:
            upright = _to_rgb(_to_eight_bits(_turn(image, orientation)))
        return Decoded(np.array(upright), (width, height) if orientation in _SIDEWAYS else (height, width)), name


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by its upper byte, as Pillow does for 16-bit colour; `convert` would clip it at 255."""
    if image.mode in ("I", "F"):
        raise ImageError("32-bit or floating-point samples have no fixed range; save the image with 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = int(tags.get(_BITS_PER_SAMPLE_TAG, (16,))[0])
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        grey = 255 - grey  # Pillow inverts such files at 8 bits only
    return Image.fromarray(grey)


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _unknown(data: bytes) -> str:
    if not data:
        return "file is empty (0 bytes)"
    return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image (first bytes {data[:8].hex(' ')})"


def _reason(name: str, error: Exception) -> str:
    detail = " ".join(str(error).split()) or type(error).__name__
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in detail)
    return f"damaged {name} image: {printable}"[:_REASON_LENGTH]
