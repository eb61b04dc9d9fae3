from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeseg.core.clips import NONE, ClipLimits, frame_number


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///pool/0016E5_00930.png", 930),
        ("/pool/2024/clip7/frame.png", None),
        ("s3://bucket/7/0001-left.jp2", 1),
        ("https://host/a/b12.png?v=3", 12),
        ("a/20240131T101500_000017.jpg", 17),
        ("a/9999999999999999999.png", None),
        ("a/no7.tar.gz", 7),
        ("", None),
    ],
)
def test_the_frame_is_the_last_number_of_the_files_name(uri: str, expected: int | None) -> None:
    assert frame_number(uri) == expected


numbers = st.integers(-1, 12)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 2), numbers), max_size=25),
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 12)), max_size=4),
    st.lists(st.integers(0, 24), max_size=6),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_what_is_free_equals_brute_force(
    images: list[tuple[int, int]], earlier: list[tuple[int, int]], taken: list[int], gap: int, most: int
) -> None:
    """Whatever was taken, free or not: an image is free if it was not taken, nothing near it was, and its group has room."""
    taken = list(dict.fromkeys(place for place in taken if place < len(images)))
    asked: dict[int, list[int]] = {}
    for clip, frame in earlier:
        asked.setdefault(clip, []).append(frame)
    clips = np.array([clip for clip, _ in images], dtype=np.int64)
    frames = np.array([frame for _, frame in images], dtype=np.int64)
    limits = ClipLimits(clips, frames, min_frame_gap=gap, max_per_group=most, asked=asked)
    for place in taken:
        limits.take(place)

    for place, (clip, frame) in enumerate(images):
        marks = [f for c, f in earlier if c == clip] + [images[i][1] for i in taken if images[i][0] == clip]
        near = any(abs(frame - mark) < gap for mark in marks if mark != NONE) and frame != NONE
        full = most > 0 and sum(images[i][0] == clip for i in taken) >= most
        expected = place not in taken and (clip == NONE or not (near or full))
        assert limits.free[place] == expected, (place, clip, frame)
