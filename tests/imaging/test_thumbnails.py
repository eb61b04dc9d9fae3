"""Pixels become files again."""

from __future__ import annotations

import numpy as np
import pytest

from activeseg.errors import ImageError
from activeseg.imaging.decode import decode_image, probe
from activeseg.imaging.thumbnails import encode_jpeg, encode_png, thumbnail
from tests.imaging.corpus import scene


def test_a_png_keeps_every_pixel() -> None:
    np.testing.assert_array_equal(decode_image(encode_png(scene()), max_pixels=10**6), scene())


def test_a_jpeg_keeps_the_picture() -> None:
    data = encode_jpeg(scene(), 90)
    assert probe(data, max_pixels=10**6).format == "JPEG"
    assert np.abs(decode_image(data, max_pixels=10**6).astype(int) - scene()).mean() < 4


def test_a_thumbnail_fits_its_side_and_is_never_enlarged() -> None:
    assert thumbnail(scene(400, 300), 100).shape == (75, 100, 3)
    np.testing.assert_array_equal(thumbnail(scene(40, 30), 100), scene(40, 30))


def test_what_is_not_an_image_is_refused() -> None:
    with pytest.raises(ImageError, match=r"\(H, W, 3\)"):
        encode_png(np.zeros((4, 4), np.uint8))
