from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from activeseg.core.masks import despeckle
from activeseg.imaging.specks import despeckle_planes

planes = hnp.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24)))


def by_numpy(given: np.ndarray, min_pixels: int) -> np.ndarray:
    return np.stack([despeckle(plane.astype(np.uint8), min_pixels).astype(bool) for plane in given])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(planes, st.integers(0, 9))
def test_each_plane_is_what_the_index_masks_way_makes_of_it(given, min_pixels):
    cleaned = despeckle_planes(given, min_pixels)
    assert cleaned.dtype == np.bool_
    assert np.array_equal(cleaned, by_numpy(given, min_pixels))


@pytest.mark.parametrize("share", [0.1, 0.45, 0.5, 0.9])
def test_noise_with_specks_inside_specks_is_cleaned_alike(share):
    given = np.random.default_rng(5).random((2, 60, 80)) < share
    assert np.array_equal(despeckle_planes(given, 6), by_numpy(given, 6))


def test_specks_and_holes_leave_each_plane_by_itself():
    given = np.zeros((3, 9, 9), np.bool_)
    given[0, 4, 4] = True  # a speck
    given[1] = True
    given[1, 2, 2] = False  # a hole
    given[2, 1:4, 1:4] = True
    before = given.copy()
    cleaned = despeckle_planes(given, 4)
    assert not cleaned[0].any()
    assert cleaned[1].all()
    assert np.array_equal(cleaned[2], given[2])
    assert np.array_equal(given, before), "the given planes are not changed"


@pytest.mark.parametrize("shape", [(2, 0, 4), (1, 1, 1), (3, 5, 5)])
def test_planes_without_a_pixel_stay_empty(shape):
    assert np.array_equal(despeckle_planes(np.zeros(shape, np.bool_), 3), np.zeros(shape, np.bool_))


def test_corners_do_not_connect():
    given = np.zeros((1, 6, 6), np.bool_)
    given[0, 1, 1] = given[0, 2, 2] = given[0, 3, 3] = True
    assert not despeckle_planes(given, 2).any()
