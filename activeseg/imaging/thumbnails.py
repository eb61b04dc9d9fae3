"""Pixels back to files: whole pictures and small ones."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from activeseg.errors import ImageError
from activeseg.imaging.decode import Pixels


def encode_png(image: Pixels, level: int = 6) -> bytes:
    """A PNG of an image (H, W, 3) uint8 RGB. Carries no metadata; equal pixels give equal bytes.

    level: zlib's, 1..9; level 1 makes a photograph a sixth larger in a quarter of the time.
    """
    stream = BytesIO()
    _picture(image).save(stream, "PNG", compress_level=level)
    return stream.getvalue()


def encode_jpeg(image: Pixels, quality: int = 90) -> bytes:
    """A JPEG of an image (H, W, 3) uint8 RGB; `quality` 1..95. Carries no metadata."""
    stream = BytesIO()
    _picture(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def thumbnail(image: Pixels, side: int) -> Pixels:
    """(h, w, 3) uint8 with the longer side at most `side` pixels, aspect kept; never enlarged."""
    picture = _picture(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture)


def _picture(image: Pixels) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"expected an image of shape (H, W, 3) and dtype uint8; got {image.shape} {image.dtype}")
    return Image.fromarray(np.ascontiguousarray(image))
