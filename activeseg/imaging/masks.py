"""Masks as PNG files.

Index masks: the value of a pixel is the index of its class. Planes, where classes overlap: one bit a pixel, the planes of
all classes one below the other, so that any viewer shows them. Their number is in a text chunk of the file, so that planes
are neither cut in the wrong places nor taken for an index mask.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from activeseg.errors import ImageError, MaskError
from activeseg.imaging.decode import check_pixels, decoding_errors, detect_format, turn_upright

Mask = npt.NDArray[np.uint8]
Planes = npt.NDArray[np.bool_]

_GREY, _PALETTE = 0, 3
_PLANES = "activeseg:planes"
_SAVE_AS = "save it as an 8-bit greyscale or palette PNG whose values are class indices"
_SAVE_PLANE_AS = "save it as a 1-bit, greyscale or palette PNG: 0 = no, anything else = yes"
_OTHER_COLOR_TYPES = {
    2: "an RGB picture",
    4: "a grey picture with an alpha channel",
    6: "an RGB picture with an alpha channel",
}


def decode_mask(data: bytes, *, max_pixels: int = 100_000_000) -> Mask:
    """Class indices (H, W) uint8 of a greyscale or palette PNG with 1, 2, 4 or 8 bits: the index, never the colour.

    EXIF orientation is applied, as it is to images. Raises MaskError, with what to do, on another format, on colour,
    16-bit or transparent files, on damage, on more than `max_pixels` pixels and on the planes that `encode_planes` writes.
    Whether the values are classes is for `LabelSet.check_mask` to say.
    """
    return class_indices(*read_values(data, max_pixels))


def class_indices(values: Mask, planes: str | None) -> Mask:
    """What `read_values` gave, where it is no planes; MaskError where it is."""
    if planes is not None:
        raise MaskError(
            f"mask holds the planes of {planes} overlapping classes, expected class indices: turn [labels] overlap on, or "
            "give an index mask"
        )
    return values


def read_values(data: bytes, max_pixels: int) -> tuple[Mask, str | None]:
    """The values (H, W) uint8 of a mask's file, and how many planes it says it holds. Raises MaskError as `decode_mask`."""
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
            planes = image.info.get(_PLANES)
            values = np.array(turn_upright(image), dtype=np.uint8)
    except ImageError as error:
        raise MaskError(f"mask: {error}") from error
    if image.mode == "L" and depth < 8:
        values //= 255 // (2**depth - 1)  # Pillow stretches 2- and 4-bit grey to 0..255
    return values, None if planes is None else str(planes)


def decode_plane(data: bytes, *, max_pixels: int = 100_000_000) -> npt.NDArray[np.bool_]:
    """Where one class is, (H, W) bool: every pixel of such a PNG whose value is not 0. Raises MaskError as `decode_mask`."""
    with plane_errors():
        return decode_mask(data, max_pixels=max_pixels) > 0


@contextmanager
def plane_errors() -> Iterator[None]:
    """MaskErrors of an index mask say instead what a file of one class has to be."""
    try:
        yield
    except MaskError as error:
        raise MaskError(str(error).replace(_SAVE_AS, _SAVE_PLANE_AS)) from error


def encode_mask(mask: Mask) -> bytes:
    """A greyscale 8-bit PNG of a mask (H, W) uint8; equal masks give equal bytes (with one build of Pillow).

    Raises MaskError where the array is not (H, W) uint8.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise MaskError(f"expected a mask of shape (H, W) and dtype uint8; got {mask.shape} {mask.dtype}")
    stream = BytesIO()
    # Masks are runs of equal values: matching runs only takes half the time, and the files are a little smaller.
    Image.fromarray(np.ascontiguousarray(mask)).save(stream, "PNG", compress_type=zlib.Z_RLE)
    return stream.getvalue()


def encode_plane(plane: npt.NDArray[np.bool_]) -> bytes:
    """A 1-bit PNG of where one class is, (H, W) bool; `decode_plane` reads it back. Equal planes give equal bytes."""
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(plane)).save(stream, "PNG")
    return stream.getvalue()


def encode_planes(planes: Planes) -> bytes:
    """A 1-bit PNG of planes (K, H, W) bool, W wide and K * H high; equal planes give equal bytes."""
    if planes.dtype != np.bool_ or planes.ndim != 3 or not planes.size:
        raise MaskError(f"expected planes of shape (K, H, W) and dtype bool; got {planes.shape} {planes.dtype}")
    stream, info = BytesIO(), PngInfo()
    info.add_text(_PLANES, str(len(planes)))
    Image.fromarray(planes.reshape(-1, planes.shape[2])).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def decode_planes(data: bytes, count: int, *, max_pixels: int = 100_000_000) -> Planes:
    """The inverse of `encode_planes`: (count, H, W) bool. `max_pixels` limits each plane.

    Raises MaskError on anything but such a PNG, on one that says it holds another number of planes and, where it says
    nothing, on one whose height is no multiple of `count`.
    """
    stacked, said = read_values(data, max_pixels * count)
    if stacked.max() > 1 or stacked.shape[0] % count or said not in (None, str(count)):
        raise MaskError(
            f"expected {count} planes of 0 and 1, one below the other; got {said or 'an unknown number of'} planes, "
            f"{stacked.shape[1]}x{stacked.shape[0]} pixels with values up to {stacked.max()}: give a mask of this label set, "
            "or restore the class list and [labels] overlap it was made for"
        )
    return stacked.reshape(count, -1, stacked.shape[1]).astype(np.bool_)


def _bit_depth(data: bytes) -> int:
    """Bits per sample, from the PNG header: bytes 24 and 25 of the file are bit depth and colour type."""
    depth, color_type = data[24], data[25]
    if color_type not in (_GREY, _PALETTE):
        raise MaskError(f"mask is {_OTHER_COLOR_TYPES.get(color_type, f'of colour type {color_type}')}; {_SAVE_AS}")
    if depth > 8:
        raise MaskError(f"mask has {depth} bits per pixel; {_SAVE_AS}")
    return depth
