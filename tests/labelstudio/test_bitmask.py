"""Bitmasks against Pillow, against what browsers write, and against files made to hurt."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, PngImagePlugin

from activeseg.errors import AnnotationError
from activeseg.labelstudio.bitmask import decode_bitmask, encode_bitmask

URL = "data:image/png;base64,"
bool_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
pictures = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4)))


def as_url(data: bytes) -> str:
    return URL + base64.b64encode(data).decode()


def by_pillow(url: str) -> np.ndarray:
    """Alpha above half, as Pillow reads it."""
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix(URL)))) as image:
        return np.asarray(image.convert("RGBA"))[..., 3] > 127


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: bytes, rows: bytes, *extra: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def filtered(rows: np.ndarray, filters: list[int], step: int) -> bytes:
    """Rows of bytes (H, N) by PNG's filters, one for each row, byte by byte as the standard words it."""
    out = bytearray()
    for number, (row, kind) in enumerate(zip(rows.tolist(), filters, strict=True)):
        above = rows[number - 1].tolist() if number else [0] * len(row)
        out.append(kind)
        for at, value in enumerate(row):
            left = row[at - step] if at >= step else 0
            corner = above[at - step] if at >= step else 0
            guess = left + above[at] - corner
            paeth = min((left, above[at], corner), key=lambda near: abs(guess - near))
            out.append((value - (0, left, above[at], (left + above[at]) // 2, paeth)[kind]) % 256)
    return bytes(out)


def peak_of(call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(bool_masks)
def test_a_mask_survives_and_pillow_sees_it_black_on_nothing(mask):
    url = encode_bitmask(mask)
    assert np.array_equal(decode_bitmask(url, *mask.shape), mask)
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix(URL))))
    image.verify()
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix(URL))))
    assert (image.mode, image.size) == ("P", mask.shape[::-1])
    rgba = np.asarray(image.convert("RGBA"))
    assert np.array_equal(rgba[..., 3], np.where(mask, 255, 0))
    assert not rgba[..., :3].any()


def test_equal_masks_give_equal_strings_however_they_lie_in_memory():
    mask = np.random.default_rng(1).random((37, 53)) > 0.5
    assert encode_bitmask(mask) == encode_bitmask(np.asfortranarray(mask)) == encode_bitmask(mask[::-1][::-1])


@settings(max_examples=60, deadline=None)
@given(pictures, st.data())
def test_a_browsers_rgba_is_cut_at_half_opacity_whatever_its_row_filters(values, data):
    height, width = values.shape[:2]
    same = st.integers(0, 4).map(lambda kind: [kind] * height)
    filters = data.draw(same | st.lists(st.integers(0, 4), min_size=height, max_size=height))
    rows = zlib.compress(filtered(values.reshape(height, -1), filters, 4))
    url = as_url(png(struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0), rows))
    assert np.array_equal(decode_bitmask(url, height, width), values[..., 3] > 127)
    assert np.array_equal(by_pillow(url), values[..., 3] > 127)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(bool_masks, st.data())
def test_one_bit_pngs_are_read_whatever_their_row_filters_and_transparency(mask, data):
    height, width = mask.shape
    filters = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    alpha = data.draw(st.sampled_from([b"", b"\0", b"\0\xff", b"\xff\0", b"\x7f\x80", b"\xff\xff"]))
    extra = [chunk(b"PLTE", bytes(6)), *([chunk(b"tRNS", alpha)] if alpha else [])]
    rows = zlib.compress(filtered(np.packbits(mask, axis=1), filters, 1))
    url = as_url(png(struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0), rows, *extra))
    assert np.array_equal(decode_bitmask(url, height, width), by_pillow(url))


@pytest.mark.parametrize("transparency", [None, 0, 1])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_every_kind_of_png_means_what_pillow_makes_of_it(mode, transparency):
    values = np.random.default_rng(5).integers(0, 2 if mode == "1" else 256, (7, 9, 4), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode if mode != "I;16" else "I").convert(mode)
    clear = (transparency,) * 3 if mode == "RGB" else transparency
    options = {"transparency": clear} if transparency is not None and "A" not in mode else {}
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    url = as_url(buffer.getvalue())
    assert np.array_equal(decode_bitmask(url, 7, 9), by_pillow(url))


@pytest.mark.slow
@pytest.mark.parametrize("depth_and_color", [(8, 6), (1, 3), (8, 0)])
def test_pixels_that_unpack_to_more_than_their_size_are_refused_without_unpacking_them(depth_and_color):
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 << 20)) for _ in range(32)) + packer.flush()
    header = struct.pack(">IIBBBBB", 480, 360, *depth_and_color, 0, 0, 0)
    url = as_url(png(header, rows, chunk(b"PLTE", bytes(6))))

    def decode():
        with pytest.raises(AnnotationError, match="unpacks to more than the"):
            decode_bitmask(url, 360, 480)

    assert peak_of(decode) < 2_000_000 + 3 * len(url)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tEXt"])
def test_texts_and_profiles_that_unpack_to_gigabytes_are_never_looked_at(kind):
    mask = np.eye(20, dtype=bool)
    bomb = zlib.compress(bytes(1 << 25), 9)
    names = {b"iTXt": b"k\0\1\0\0\0", b"tEXt": b"k\0"}
    data = base64.b64decode(encode_bitmask(mask).removeprefix(URL))
    url = as_url(data[:33] + chunk(kind, names.get(kind, b"k\0\0") + bomb) + data[33:])
    found = []
    assert peak_of(lambda: found.append(decode_bitmask(url, 20, 20))) < 200_000 + 3 * len(url)
    assert np.array_equal(found[0], mask)


def test_a_string_longer_than_its_pixels_can_need_is_refused_before_it_is_decoded():
    url = URL + "A" * 10_000_000

    def decode():
        with pytest.raises(AnnotationError, match="longer than 480x360 pixels can need"):
            decode_bitmask(url, 360, 480)

    assert peak_of(decode) < 100_000


GOOD = base64.b64decode(encode_bitmask(np.eye(6, dtype=bool)).removeprefix(URL))
HEADER = struct.pack(">IIBBBBB", 6, 6, 1, 3, 0, 0, 0)
ROWS = zlib.compress(bytes(12))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "data:image/png"),
        (["data:image/png;base64,"], "data:image/png"),
        ("http://127.0.0.1/mask.png", "data:image/png"),
        ("data:image/svg+xml;base64,AAAA", "data:image/png"),
        (URL + "%%%", "not a readable PNG"),
        (URL + "ä\ud800", "not a readable PNG"),
        (URL, "a PNG of 6x6 pixels"),
        (as_url(b"GIF89a" + GOOD), "a PNG of 6x6 pixels"),
        (encode_bitmask(np.ones((6, 7), bool)), "a PNG of 6x6 pixels"),
        (as_url(GOOD[:-12]), "it ends early"),
        (as_url(GOOD[:40]), "it ends early"),
        (as_url(GOOD.replace(b"\0\xff", b"\0\xfe")), "damaged tRNS chunk"),
        (as_url(png(HEADER[:8] + b"\3" + HEADER[9:], ROWS)), "damaged header"),
        (as_url(png(HEADER[:9] + b"\7" + HEADER[10:], ROWS)), "damaged header"),
        (as_url(png(HEADER[:10] + b"\1" + HEADER[11:], ROWS)), "damaged header"),
        (as_url(png(HEADER + b"\0", ROWS)), "damaged header"),
        (as_url(png(HEADER[:12] + b"\1", ROWS)), "interlaced"),
        (as_url(png(HEADER, ROWS, chunk(b"IHDR", HEADER))), "two IHDR chunks"),
        (as_url(png(HEADER, zlib.compress(bytes(11)))), "its pixels end early"),
        (as_url(png(HEADER, ROWS[:-2])), "its pixels end early"),
        (as_url(png(HEADER, b"")), "its pixels end early"),
        (as_url(png(HEADER, b"\1\2\3")), "damaged pixels"),
        (as_url(png(HEADER, zlib.compress(b"\x09" + bytes(11)), chunk(b"PLTE", bytes(6)))), "not a readable PNG"),
    ],
)  # fmt: skip
def test_what_is_no_whole_png_of_the_images_size_is_refused_with_the_reason(url, reason):
    with pytest.raises(AnnotationError, match=reason):
        decode_bitmask(url, 6, 6)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(pictures, st.data())
def test_damaged_files_give_a_mask_of_the_right_size_or_are_refused(values, data):
    mode = data.draw(st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "P"]))
    buffer = io.BytesIO()
    notes = PngImagePlugin.PngInfo()
    notes.add_text("key", "value", zip=True)
    Image.fromarray(values).convert(mode).save(buffer, "PNG", pnginfo=notes)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(8, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    if data.draw(st.booleans()):
        damaged = with_right_checksums(bytes(damaged))
    with contextlib.suppress(AnnotationError):
        assert decode_bitmask(as_url(bytes(damaged)), *values.shape[:2]).shape == values.shape[:2]


def with_right_checksums(data: bytes) -> bytes:
    """So that damage gets past the checksums and into the decoder."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out
