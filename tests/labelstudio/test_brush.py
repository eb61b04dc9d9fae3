from __future__ import annotations

import contextlib
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter import brush as sdk

from activeseg.errors import AnnotationError
from activeseg.labelstudio import brush
from activeseg.labelstudio.brush import decode_rle, encode_rle

bool_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def pack(values: list[int], sizes: tuple[int, ...], data: st.DataObject) -> bytes:
    """RLE of values by any records that say the same: bits as text, and the sizes of run lengths that are asked for."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(values):
        index = data.draw(st.integers(0, 3))
        longest = min(1 << sizes[index], len(values) - at)
        length = data.draw(st.integers(1, min(longest, 40)))
        piece = values[at : at + length]
        repeats = len(set(piece)) == 1 and data.draw(st.booleans())
        bits += f"{repeats:b}{index:02b}" + f"{length - 1:0{sizes[index]}b}"
        bits += "".join(f"{value:08b}" for value in (piece[:1] if repeats else piece))
        at += length
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))


def stroke(height: int, width: int, seed: int) -> np.ndarray:
    """What a browser leaves of a stroke, RGBA: every channel is alpha, which falls softly at its edge."""
    ends = np.random.default_rng(seed).uniform(0, 1, (2, 2)) * (height, width)
    rows, columns = np.mgrid[:height, :width]
    along = np.linspace(0, 1, 50)[:, None] * (ends[1] - ends[0]) + ends[0]
    distance = np.hypot(rows[..., None] - along[:, 0], columns[..., None] - along[:, 1]).min(axis=-1)
    alpha = np.clip((3 - distance) * 90 + 128, 0, 255).astype(np.uint8)
    return np.repeat(alpha[..., None], 4, axis=2)


def peak_of(call) -> int:
    """Bytes that a call had allocated at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def without_redundant_byte(ours: list[int], theirs: list[int]) -> list[int]:
    return theirs[:-1] if len(theirs) == len(ours) + 1 and theirs[-1] == 0 else theirs


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(bool_masks)
def test_bytes_equal_the_sdks_and_either_decoder_reads_them(mask):
    ours = encode_rle(mask)
    assert ours == without_redundant_byte(ours, sdk.mask2rle(mask.astype(np.uint8) * 255))
    assert np.array_equal(decode_rle(ours, *mask.shape), mask)
    assert np.array_equal(sdk.decode_rle(ours).reshape(*mask.shape, 4)[..., 3] > 0, mask)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[0, 1, 0], [0, 1, 1]], [0, 0, 0, 24, 57, 27, 252, 96, 17, 255, 206, 1, 63, 248]),
        ([[1, 1], [1, 1]], [0, 0, 0, 16, 57, 27, 253, 255, 240]),
    ],
)
def test_known_vectors(mask, expected):
    assert encode_rle(np.array(mask, bool)) == expected


@pytest.mark.parametrize("pixels", [16383, 16384, 16385, 32768, 32769, 32800, 65536, 70001])
def test_runs_longer_than_a_record_are_split_like_the_sdks(pixels):
    mask = np.ones((1, pixels + 1), bool)
    mask[0, -1] = False
    ours = encode_rle(mask)
    assert ours == without_redundant_byte(ours, sdk.mask2rle(mask.astype(np.uint8) * 255))
    assert np.array_equal(decode_rle(ours, *mask.shape), mask)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_soft_edges_and_literals_are_cut_at_half_opacity(values):
    rle = sdk.encode_rle(values.ravel())
    assert np.array_equal(decode_rle(rle, *values.shape[:2]), values[..., 3] > 127)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(4))), st.integers(1, 40), st.data())
def test_any_records_of_any_run_sizes_say_the_same_read_in_blocks_of_any_length(values, block, data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 16), min_size=4, max_size=4)))
    values[..., 3] = data.draw(st.sampled_from([values[..., 3], np.uint8(128), np.uint8(127)]))
    rle = pack(values.ravel().tolist(), sizes, data)
    with mock.patch.object(brush, "_BLOCK", block), mock.patch.object(brush, "_MOST_LITERALS", block):
        assert np.array_equal(decode_rle(list(rle), *values.shape[:2]), values[..., 3] > 127)


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 50), st.integers(5, 50), st.integers(0, 10_000))
def test_a_browsers_soft_stroke_is_cut_at_half_opacity_as_the_sdk_would_see_it(height, width, seed):
    values = stroke(height, width, seed)
    rle = sdk.encode_rle(values.ravel())
    seen = sdk.decode_rle(rle).reshape(values.shape)[..., 3]
    assert np.array_equal(decode_rle(rle, height, width), seen > 127)
    assert len(np.unique(seen)) > 2, "the stroke has no soft edge"


def test_a_stream_of_many_blocks_of_literals_and_runs_is_read_to_its_end():
    random = np.random.default_rng(3)
    values = random.integers(0, 256, (150, 220, 4), dtype=np.uint8)
    values[::3] = np.repeat(random.integers(0, 2, (50, 220, 1), dtype=np.uint8) * np.uint8(255), 4, axis=2)
    rle = sdk.encode_rle(values.ravel())
    assert len(rle) > 2 * brush._BLOCK
    assert np.array_equal(decode_rle(rle, 150, 220), values[..., 3] > 127)


@pytest.mark.parametrize("claimed", [67_108_864, 4_294_967_292])
@pytest.mark.parametrize("length", [3_463, 221_000])
def test_a_header_of_another_size_is_refused_before_anything_is_allocated(claimed, length):
    rle = list((claimed.to_bytes(4) + bytes(encode_rle(np.ones((4, 4), bool)))[4:]).ljust(length, b"\xfb"))

    def decode():
        with pytest.raises(AnnotationError, match=f"holds {claimed} values; expected 691200|RLE of 221000 bytes is longer"):
            decode_rle(rle, *((360, 480) if length < 10_000 else (4, 4)))

    assert peak_of(decode) < 200_000


def test_a_stream_longer_than_its_pixels_can_need_is_refused_before_it_is_copied():
    rle = [0] * 1_000_000

    def decode():
        with pytest.raises(AnnotationError, match="is longer than the 224 that 4x4 pixels can need"):
            decode_rle(rle, 4, 4)

    assert peak_of(decode) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("flag", [0, 1], ids=["literals", "runs"])
def test_records_of_a_single_value_each_take_little_more_than_the_mask(flag):
    values = 4 * 120 * 120
    bits = f"{values:032b}{7:05b}0010001101111111" + f"{flag}0000011111111" * values
    rle = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    assert decode_rle(rle, 120, 120).all()
    assert peak_of(lambda: decode_rle(rle, 120, 120)) < len(rle) + values // 4 + 4_000_000


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(bool_masks, st.data())
def test_a_damaged_stream_gives_a_mask_of_the_right_size_or_is_refused(mask, data):
    rle = encode_rle(mask)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(rle) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "drop", "repeat"]))
        if change == "set":
            rle[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            rle = rle[: place + 1]
        elif change == "drop" and len(rle) > 1:
            del rle[place]
        else:
            rle[place:place] = rle[place:]
    with contextlib.suppress(AnnotationError):
        assert decode_rle(rle, *mask.shape).shape == mask.shape


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_records_decode_or_are_refused(tail):
    header = bytes([0, 0, 0, 64, 57, 27, 0b11111000])
    with contextlib.suppress(AnnotationError):
        assert decode_rle(header + tail, 4, 4).shape == (4, 4)


@pytest.mark.parametrize(
    ("rle", "reason"),
    [
        ([], "too short"),
        ([1, 2, 3], "too short"),
        ("abc", "numbers 0..255"),
        ([0, 0, 0, 64, 256], "numbers 0..255"),
        ([0.5] * 20, "numbers 0..255"),
        (None, "numbers 0..255"),
        (10**12, "numbers 0..255; got int"),
        ({"0": 1}, "numbers 0..255; got dict"),
        ([[[0]]] * 20, "numbers 0..255"),
        ([0, 0, 0, 64, 57, 27, 252, 96, 255], "describes more than"),
        ([0, 0, 0, 64, 121, 27, 252, 0, 0], "words of 16 bits"),
        (encode_rle(np.eye(4, dtype=bool))[:9], "ends"),
        (encode_rle(np.ones((4, 4), bool))[:7], "ends"),
    ],
)
def test_damaged_data_is_refused_with_the_reason(rle, reason):
    with pytest.raises(AnnotationError, match=reason):
        decode_rle(rle, 4, 4)
