from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter import brush as sdk

from activeseg.errors import AnnotationError
from activeseg.labelstudio.brush import decode_rle, encode_rle

bool_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def without_redundant_byte(ours: list[int], theirs: list[int]) -> list[int]:
    return theirs[:-1] if len(theirs) == len(ours) + 1 and theirs[-1] == 0 else theirs


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


def test_a_header_of_another_size_is_refused_before_anything_is_allocated():
    hostile = [255, 255, 255, 252, *encode_rle(np.ones((4, 4), bool))[4:]]
    tracemalloc.start()
    with pytest.raises(AnnotationError, match="holds 4294967292 values; expected 64"):
        decode_rle(hostile, 4, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@settings(max_examples=300, deadline=None)
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
        ([0, 0, 0, 64, 121, 27, 252, 0, 0], "words of 16 bits"),
        (encode_rle(np.eye(4, dtype=bool))[:9], "ends"),
        (encode_rle(np.ones((4, 4), bool))[:7], "ends"),
    ],
)
def test_damaged_data_is_refused_with_the_reason(rle, reason):
    with pytest.raises(AnnotationError, match=reason):
        decode_rle(rle, 4, 4)
