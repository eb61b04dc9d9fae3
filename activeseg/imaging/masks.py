"""Index masks as PNG files: the value of a pixel is the index of its class."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from activeseg.errors import ImageError, MaskError
from activeseg.imaging.decode import check_pixels, decoding_errors, detect_format, turn_upright

Mask = npt.NDArray[np.uint8]

_GREY, _PALETTE = 0, 3
_SAVE_AS = "save it as an 8-bit greyscale or palette PNG whose values are class indices"
_OTHER_COLOR_TYPES = {
    2: "an RGB picture",
    4: "a grey picture with an alpha channel",
    6: "an RGB picture with an alpha channel",
}


def decode_mask(data: bytes, *, max_pixels: int = 100_000_000) -> Mask:
    """Class indices (H, W) uint8 of a greyscale or palette PNG with 1, 2, 4 or 8 bits: the index, never the colour.

    EXIF orientation is applied, as it is to images. Raises MaskError, with what to do, on another format, on colour,
    16-bit or transparent files, on damage and on more than `max_pixels` pixels. Whether the values are classes is for
    `LabelSet.check_mask` to say.
    """
    name = detect_format(data)
    if name != "PNG":
        raise MaskError(f"mask is {f'a {name} file' if name else 'not an image file'}, expected PNG; {_SAVE_AS}")
    try:
        with decoding_errors("PNG"), PngImageFile(BytesIO(data)) as image:
            check_pixels(*image.size, max_pixels)
            depth = _bit_depth(data)
            if "transparency" in image.info:
                raise MaskError(f"mask has transparent values, so what they mean is unclear; {_SAVE_AS}")
            image.load()
            values = np.array(turn_upright(image), dtype=np.uint8)
    except ImageError as error:
        raise MaskError(f"mask: {error}") from error
    if image.mode == "L" and depth < 8:
        values //= 255 // (2**depth - 1)  # Pillow stretches 2- and 4-bit grey to 0..255
    return values


def encode_mask(mask: Mask) -> bytes:
    """A greyscale 8-bit PNG of a mask (H, W) uint8; equal masks give equal bytes (with one build of Pillow).

    Raises MaskError where the array is not (H, W) uint8.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise MaskError(f"expected a mask of shape (H, W) and dtype uint8; got {mask.shape} {mask.dtype}")
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(mask)).save(stream, "PNG")
    return stream.getvalue()


def _bit_depth(data: bytes) -> int:
    """Bits per sample, from the PNG header: bytes 24 and 25 of the file are bit depth and colour type."""
    depth, color_type = data[24], data[25]
    if color_type not in (_GREY, _PALETTE):
        raise MaskError(f"mask is {_OTHER_COLOR_TYPES.get(color_type, f'of colour type {color_type}')}; {_SAVE_AS}")
    if depth > 8:
        raise MaskError(f"mask has {depth} bits per pixel; {_SAVE_AS}")
    return depth
