"""An image file gives its upright RGB pixels, or one short ImageError. Nothing else."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from activeseg.errors import ImageError
from activeseg.imaging.decode import ImageInfo, decode_image, decode_input, decoding_errors, probe, resize_short_side
from activeseg.records import InputPolicy
from tests.imaging.corpus import ORIENTATIONS, Case, bad_cases, encode, exif, good_cases, png, scene, stored_for, write_corpus

# Pillow warns of odd metadata; whether the pixels are right is asserted here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMIT = 10_000_000


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", good_cases(), ids=by_name)
def test_a_good_file_decodes_to_its_pixels(case: Case) -> None:
    assert case.pixels is not None
    pixels = decode_image(case.data, max_pixels=LIMIT)
    assert pixels.shape == case.pixels.shape
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.abs(pixels.astype(int) - case.pixels).mean() <= case.tolerance


@pytest.mark.parametrize("case", bad_cases(), ids=by_name)
def test_a_broken_file_gives_a_reason_fit_for_a_database_column(case: Case) -> None:
    for read in (decode_image, probe):
        with pytest.raises(ImageError) as caught:
            read(case.data, max_pixels=LIMIT)
        reason = str(caught.value)
        assert 0 < len(reason) <= 200
        assert reason.isprintable()
        assert " at 0x" not in reason


def test_a_reason_never_carries_what_a_database_refuses() -> None:
    with pytest.raises(ImageError) as caught, decoding_errors("PNG"):
        raise OSError("first\0line \x80\udcff\nsecond é " + "x" * 500)
    assert str(caught.value).startswith("damaged PNG image: first?line ?? second ? xxx")
    assert len(str(caught.value)) == 200


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation_equals_a_numpy_transform(format: str, orientation: int) -> None:
    upright = scene()
    options = {"lossless": True} if format == "WEBP" else {}
    if format == "TIFF":
        data = encode(stored_for(upright, orientation), format, tiffinfo={0x0112: orientation})
    else:
        data = encode(stored_for(upright, orientation), format, exif=exif(orientation), **options)
    np.testing.assert_array_equal(decode_image(data, max_pixels=LIMIT), upright)
    assert probe(data, max_pixels=LIMIT) == ImageInfo(48, 32, format)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 300, 4095, 32768, 65280, 65535]], np.uint16)
    for data in (encode(values, "PNG"), encode(values, "TIFF"), encode(values.astype(">u2"), "TIFF")):
        assert decode_image(data, max_pixels=LIMIT)[0, :, 1].tolist() == [0, 0, 1, 1, 15, 128, 255, 255]


def grey_tiff(width: int, height: int, bits: int, photometric: int, pixels: bytes) -> bytes:
    """A TIFF by hand: Pillow writes neither 12 bits nor 16-bit grey whose zero is white."""
    start = 8 + 2 + 12 * 8 + 4
    values = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: start, 277: 1, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + pixels


def test_twelve_bit_grey_and_white_at_zero_are_understood() -> None:
    twelve = grey_tiff(2, 1, 12, 1, bytes([0x80, 0x0F, 0xFF]))
    assert decode_image(twelve, max_pixels=LIMIT)[0, :, 0].tolist() == [0x80, 0xFF]
    inverted = grey_tiff(3, 1, 16, 0, np.array([0, 0x4000, 0xFFFF], "<u2").tobytes())
    assert decode_image(inverted, max_pixels=LIMIT)[0, :, 0].tolist() == [255, 191, 0]


def test_sixteen_bit_grey_and_colour_of_the_same_values_agree() -> None:
    values = np.random.default_rng(3).integers(0, 65536, (8, 9)).astype(">u2")
    colour = png(9, 8, 16, 2, [np.repeat(row, 3).tobytes() for row in values])
    np.testing.assert_array_equal(
        decode_image(colour, max_pixels=LIMIT), decode_image(encode(values.astype(np.uint16), "PNG"), max_pixels=LIMIT)
    )


def test_a_size_over_the_limit_is_refused_from_the_header_alone() -> None:
    bomb = png(60000, 60000, 8, 2, [])
    with pytest.raises(ImageError, match=r"60000x60000.*3600000000.*1000000.*\[pool\] max_pixels"):
        decode_image(bomb, max_pixels=1_000_000)


def test_the_limit_is_the_callers_and_exact() -> None:
    data = encode(scene(), "PNG")
    assert decode_image(data, max_pixels=48 * 32).shape == (32, 48, 3)
    with pytest.raises(ImageError, match="max_pixels"):
        decode_image(data, max_pixels=48 * 32 - 1)


def test_more_pixels_than_pillow_itself_would_open_are_read_where_the_limit_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(encode(scene(), "JPEG"), max_pixels=LIMIT).shape == (32, 48, 3)


def test_bit_flips_and_cuts_raise_nothing_but_image_errors() -> None:
    rng = np.random.default_rng(20)
    cases = good_cases()
    refused = 0
    for number in range(300):
        data = bytearray(cases[number % len(cases)].data)
        for position in rng.integers(0, len(data), size=int(rng.integers(1, 6))):
            data[position] ^= 1 << int(rng.integers(8))
        if number % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        try:
            pixels = decode_image(bytes(data), max_pixels=LIMIT)
        except ImageError:
            refused += 1
        else:
            assert pixels.ndim == 3
            assert pixels.dtype == np.uint8
    assert 50 < refused < 300


def test_no_part_of_a_cut_file_is_passed_off_as_the_image() -> None:
    large = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for format in ("JPEG", "PNG", "TIFF", "WEBP", "BMP"):
        data = encode(large, format)
        for end in range(1, len(data) - 64, len(data) // 23):
            with pytest.raises(ImageError):
                decode_image(data[:end], max_pixels=LIMIT)


def test_threads_get_the_same_pixels_and_no_pillow_setting_changes() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    cases = good_cases()
    alone = [decode_image(case.data, max_pixels=LIMIT) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda case: decode_image(case.data, max_pixels=LIMIT), cases * 4))
    for number, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[number % len(cases)])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_the_corpus_is_written_whole(tmp_path: Path) -> None:
    good, bad = write_corpus(tmp_path)
    assert len(good) + len(bad) == len(list(tmp_path.iterdir()))
    assert len(good) >= 30
    assert len(bad) >= 30


@pytest.mark.parametrize(("shape", "side", "expected"), [((90, 120), 45, (45, 60)), ((120, 90), 45, (60, 45))])
def test_the_short_side_gets_the_asked_length(shape: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert resize_short_side(np.zeros((*shape, 3), np.uint8), side).shape == (*expected, 3)


def test_no_short_side_and_the_present_one_change_nothing() -> None:
    image = scene()
    assert resize_short_side(image, None) is image
    assert resize_short_side(image, 32) is image


@pytest.mark.parametrize("side", [7, 13, 50])
def test_resizing_is_an_antialiased_triangle_filter(side: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (30, 41, 3)).astype(np.uint8)
    resized = resize_short_side(image, side)
    rows, columns = (triangle_weights(n, m) for n, m in zip(image.shape[:2], resized.shape[:2], strict=True))
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(float))
    assert np.abs(resized - expected).max() <= 1.01


def triangle_weights(source: int, target: int) -> np.ndarray:
    """(target, source) weights of linear interpolation whose reach grows with the reduction."""
    scale = max(source / target, 1.0)
    centers = (np.arange(target) + 0.5) * source / target
    distance = np.abs(np.arange(source)[None] + 0.5 - centers[:, None]) / scale
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def encoded(image: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth, with edges."""
    rows, columns = np.mgrid[:height, :width]
    waves = 120 + 60 * np.sin(rows / 17) + 50 * np.cos(columns / 23)
    colours = np.stack([waves, np.roll(waves, 9, 1), np.where(columns > width // 2, 200, waves)], axis=2)
    return colours.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(400, 600), (401, 601), (600, 401), (1001, 1000)])
def test_a_reduced_jpeg_has_the_size_and_nearly_the_pixels_of_a_whole_one(size: tuple[int, int]) -> None:
    data = encoded(photograph(*size), quality=95)
    whole = decode_input(data, InputPolicy(100), max_pixels=LIMIT)
    reduced = decode_input(data, InputPolicy(100, reduced=True), max_pixels=LIMIT)
    assert whole.size == reduced.size == size
    assert whole.pixels.shape == reduced.pixels.shape
    assert np.abs(whole.pixels.astype(int) - reduced.pixels).mean() < 2
    assert (whole.pixels != reduced.pixels).any()


def test_what_is_not_twice_as_large_or_no_jpeg_is_decoded_whole() -> None:
    image = photograph(190, 300)
    for data in (encoded(image), encoded(photograph(400, 600), "PNG")):
        whole, reduced = (decode_input(data, InputPolicy(100, reduced=flag), max_pixels=LIMIT) for flag in (False, True))
        np.testing.assert_array_equal(whole.pixels, reduced.pixels)
        np.testing.assert_array_equal(whole.pixels, resize_short_side(decode_image(data, max_pixels=LIMIT), 100))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_stands_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(400, 401), exif=exif)
    reduced = decode_input(data, InputPolicy(50, reduced=True), max_pixels=LIMIT)
    whole = decode_image(data, max_pixels=LIMIT)
    assert reduced.size == whole.shape[:2]
    assert np.abs(resize_short_side(whole, 50).astype(int) - reduced.pixels).mean() < 4


def test_the_pixel_limit_counts_the_whole_image_also_where_less_is_decoded() -> None:
    with pytest.raises(ImageError, match="max_pixels"):
        decode_input(encoded(photograph(400, 600)), InputPolicy(50, reduced=True), max_pixels=100_000)
