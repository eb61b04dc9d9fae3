"""What a browser shows: which files look there as they were decoded here, and pictures at the size people see.

A file is shown alike where nothing is left to the reader: 8-bit RGB or grey, no orientation, no transparency, one frame.
Colour profiles change tints in a browser and not here; they move nothing, so they do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from activeseg.imaging.decode import Pixels, decoding_errors, detect_format, turn_upright

_SHOWN: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
}
_EIGHT_BITS = 8
# Chunks that say nothing about orientation. Where a PNG has others, Pillow must decode it all to find an EXIF block.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"iCCP", b"sBIT", b"pHYs", b"tIME"}
_ANIMATION = b"acTL"


def shows_as_decoded(data: bytes) -> bool:
    """Whether a browser shows this image file with the pixels that `decode_image` gives; only its header is read.

    Raises ImageError where the header is damaged.
    """
    name = detect_format(data)
    if name not in _SHOWN:
        return False
    with decoding_errors(name), _SHOWN[name](BytesIO(data)) as image:
        if image.mode not in ("RGB", "L") or image.has_transparency_data or getattr(image, "is_animated", False):
            return False
        if name != "PNG":
            return turn_upright(image) is image
        chunks = set(_chunks(data))
        # Byte 24 is the bit depth: Pillow gives 16-bit colours as 8 bits without a word.
        plain = data[24] == _EIGHT_BITS and _ANIMATION not in chunks
        return plain and (chunks <= _PLAIN_CHUNKS or turn_upright(image) is image)


def resize_picture(image: Pixels, size: tuple[int, int]) -> Pixels:
    """(h, w, 3) uint8 of an image (H, W, 3) for people to look at, at `size` (height, width); its own size returns it."""
    if image.shape[:2] == size:
        return image
    wanted = size[1], size[0]
    return np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.LANCZOS, reducing_gap=3.0))


def _chunks(png: bytes) -> Iterator[bytes]:
    """Names of a PNG's chunks, in order: each has 4 bytes of length, 4 of name, its data and 4 of checksum."""
    position = 8
    while position + 8 <= len(png):
        yield png[position + 4 : position + 8]
        position += 12 + int.from_bytes(png[position : position + 4], "big")
