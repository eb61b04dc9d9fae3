"""An index mask keeps its indices through PNG, and what is not an index mask is refused with advice."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activeseg.errors import MaskError
from activeseg.imaging.masks import decode_mask, decode_plane, decode_planes, encode_mask, encode_planes
from tests.imaging.corpus import encode, exif, png, scene, stored_for

CAMVID = Path(os.environ.get("CAMVID", Path(__file__).parents[3] / "shared" / "camvid"))


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (31, 45)).astype(np.uint8)


def test_a_mask_comes_back_as_it_went(mask: np.ndarray) -> None:
    decoded = decode_mask(encode_mask(mask))
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable


def test_equal_masks_give_equal_bytes_of_a_grey_png(mask: np.ndarray) -> None:
    data = encode_mask(mask)
    assert encode_mask(np.asfortranarray(mask)) == data
    assert (data[24], data[25]) == (8, 0)
    assert len(encode_mask(np.zeros((360, 480), np.uint8))) < 1000


def test_a_palette_mask_gives_the_index_never_the_colour(mask: np.ndarray) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette(np.random.default_rng(1).bytes(768))
    assert picture.mode == "P"
    stream = BytesIO()
    picture.save(stream, "PNG")
    np.testing.assert_array_equal(decode_mask(stream.getvalue()), mask)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("color_type", [0, 3])
def test_masks_of_few_bits_give_their_indices(depth: int, color_type: int) -> None:
    values = np.random.default_rng(depth).integers(0, 2**depth, (5, 16)).astype(np.uint8)
    bits = np.unpackbits(values[..., None], axis=2)[..., 8 - depth :].reshape(5, -1)
    chunks = {"PLTE": bytes(range(3 * 2**depth))} if color_type == 3 else {}
    data = png(16, 5, depth, color_type, [np.packbits(row).tobytes() for row in bits], **chunks)
    np.testing.assert_array_equal(decode_mask(data), values)


def test_a_rotated_mask_turns_with_its_image(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_mask(encode(stored_for(mask, 6), "PNG", exif=exif(6))), mask)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (encode(scene(), "PNG"), "RGB picture"),
        (encode(np.dstack([scene(), scene()[..., :1]]), "PNG"), "alpha"),
        (encode(scene()[..., :2].copy(), "PNG"), "alpha"),
        (encode(scene()[..., 0].astype(np.uint16), "PNG"), "16 bits"),
        (png(2, 1, 8, 3, [b"\0\1"], PLTE=bytes(6), tRNS=b"\0"), "transparent"),
        (encode(scene()[..., 0], "JPEG"), "JPEG file"),
        (b"not a picture", "not an image file"),
        (b"", "not an image file"),
    ],
)
def test_what_is_not_an_index_mask_is_refused_with_advice(data: bytes, problem: str) -> None:
    with pytest.raises(MaskError, match=f"{problem}.*save it as an 8-bit greyscale or palette PNG"):
        decode_mask(data)


def test_a_cut_or_huge_mask_is_refused(mask: np.ndarray) -> None:
    data = encode_mask(mask)
    for end in range(9, len(data) - 20, 50):
        with pytest.raises(MaskError):
            decode_mask(data[:end])
    with pytest.raises(MaskError, match="60000x60000"):
        decode_mask(png(60000, 60000, 8, 0, []))
    with pytest.raises(MaskError, match="45x31"):
        decode_mask(data, max_pixels=1000)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)])
def test_only_masks_are_encoded(array: np.ndarray) -> None:
    with pytest.raises(MaskError, match="uint8"):
        encode_mask(array)


def test_masks_of_real_street_scenes_are_read() -> None:
    files = sorted((CAMVID / "val" / "masks").glob("*.png"))[:5]
    if not files:
        pytest.skip(f"no street scenes at {CAMVID}: set CAMVID")
    for file in files:
        mask = decode_mask(file.read_bytes())
        assert mask.shape == (360, 480)
        assert mask.max() <= 11


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (12, 33, 64)])
def test_planes_come_back_bit_for_bit(shape):
    planes = np.random.default_rng(1).random(shape) < 0.5
    assert np.array_equal(decode_planes(encode_planes(planes), shape[0]), planes)


def test_planes_that_are_none_are_refused_with_what_came():
    with pytest.raises(MaskError, match="2 planes of 0 and 1"):
        decode_planes(encode_mask(np.full((4, 4), 7, np.uint8)), 2)
    with pytest.raises(MaskError, match="3 planes"):
        decode_planes(encode_planes(np.ones((2, 2, 2), np.bool_)), 3)
    with pytest.raises(MaskError, match="pixels"):
        decode_planes(encode_planes(np.ones((2, 20, 20), np.bool_)), 2, max_pixels=100)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_planes_are_never_cut_into_another_number(count: int) -> None:
    data = encode_planes(np.zeros((4, 20, 6), np.bool_))
    with pytest.raises(MaskError, match=rf"expected {count} planes .*; got 4 planes, 6x80 .*or restore the class list and"):
        decode_planes(data, count)


def test_planes_are_never_taken_for_an_index_mask() -> None:
    with pytest.raises(MaskError, match=r"planes of 3 overlapping classes, .*: turn \[labels\] overlap on, or give"):
        decode_mask(encode_planes(np.zeros((3, 4, 5), np.bool_)))


def test_planes_stored_without_their_number_are_read_as_they_were() -> None:
    planes = np.random.default_rng(2).random((3, 4, 5)) < 0.5
    stream = BytesIO()
    Image.fromarray(planes.reshape(-1, 5)).save(stream, "PNG")
    assert np.array_equal(decode_planes(stream.getvalue(), 3), planes)
    with pytest.raises(MaskError, match="got an unknown number of planes, 5x12 pixels"):
        decode_planes(stream.getvalue(), 5)


@pytest.mark.parametrize(("mode", "yes"), [("1", 1), ("L", 255), ("L", 1), ("P", 7)])
def test_a_plane_is_wherever_the_value_is_not_zero(mode: str, yes: int) -> None:
    where = np.random.default_rng(0).random((5, 9)) > 0.5
    stream = BytesIO()
    image = Image.fromarray(where) if mode == "1" else Image.fromarray((where * yes).astype(np.uint8), mode)
    image.save(stream, "PNG")
    assert np.array_equal(decode_plane(stream.getvalue()), where)


def test_a_colour_picture_is_no_plane_and_the_message_says_what_would_be() -> None:
    stream = BytesIO()
    Image.new("RGB", (3, 3)).save(stream, "PNG")
    with pytest.raises(MaskError, match="RGB picture; save it as a 1-bit, greyscale or palette PNG: 0 = no, "):
        decode_plane(stream.getvalue())
