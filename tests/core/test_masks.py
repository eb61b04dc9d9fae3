from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from activeseg.core.masks import (
    changed_share,
    compose_regions,
    despeckle,
    label_components,
    split_regions,
    unite_regions,
)

masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 3))


@given(masks)
def test_regions_put_together_again_give_the_mask(mask):
    regions = split_regions(mask, range(4))
    assert [index for index, _ in regions] == sorted(set(mask.ravel().tolist()))
    assert np.array_equal(compose_regions(mask.shape, regions, fill=255), mask)


def test_later_regions_lie_above_and_the_rest_is_filled():
    left, top = np.zeros((2, 2, 2), bool)
    left[:, 0] = top[0] = True
    assert compose_regions((2, 2), [(1, left), (7, top)], fill=255).tolist() == [[7, 7], [1, 255]]


def test_classes_that_are_not_asked_for_are_left_out():
    mask = np.array([[0, 1, 2]], np.uint8)
    assert [index for index, _ in split_regions(mask, (2, 0, 9))] == [2, 0]


@pytest.mark.slow
@settings(max_examples=200)
@given(masks)
def test_components_agree_with_scipy(mask):
    ours = label_components(mask)
    expected = np.zeros(mask.shape, np.int64)
    for value in np.unique(mask):
        numbers = ndimage.label(mask == value)[0]
        expected[mask == value] = numbers[mask == value] + expected.max()
    pairs = np.unique(np.stack([ours.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == ours.max() + 1 == len(np.unique(expected))


@pytest.mark.slow
@settings(max_examples=200)
@given(masks, st.integers(1, 6))
def test_no_speck_stays_and_large_components_only_grow(mask, min_pixels):
    cleaned = despeckle(mask, min_pixels)
    sizes = np.bincount(label_components(mask).ravel())
    large = sizes[label_components(mask)] >= min_pixels
    if not large.any():
        assert np.array_equal(cleaned, mask)
        return
    assert np.bincount(label_components(cleaned).ravel()).min() >= min_pixels
    assert np.array_equal(cleaned[large], mask[large])


def test_a_speck_takes_the_class_of_its_longest_border():
    mask = np.array([[1, 1, 1, 2], [1, 9, 2, 2], [1, 1, 2, 2]], np.uint8)
    assert despeckle(mask, 2)[1, 1] == 1


def test_a_tie_goes_to_the_lower_class():
    mask = np.array([[5, 5, 9, 3, 3]], np.uint8)
    assert despeckle(mask, 2)[0, 2] == 3


@pytest.mark.parametrize("shape", [(0, 4), (1, 1)])
def test_tiny_masks_are_left_alone(shape):
    mask = np.zeros(shape, np.uint8)
    assert np.array_equal(despeckle(mask, 3), mask)


def test_the_given_mask_is_not_changed():
    mask = np.array([[1, 1, 9, 1]], np.uint8)
    despeckle(mask, 2)
    assert mask[0, 2] == 9


def test_planes_are_split_and_united_without_loss():
    planes = np.random.default_rng(3).random((4, 7, 5)) < 0.4
    regions = split_regions(planes, range(4))
    assert np.array_equal(unite_regions((7, 5), regions, planes=4), planes)
    assert np.array_equal(unite_regions((7, 5), [*regions, regions[0]], planes=4), planes), "regions add up"


def test_changed_share_counts_a_pixel_once_however_many_of_its_classes_changed():
    before = np.zeros((3, 2, 2), np.bool_)
    after = before.copy()
    after[:, 0, 0] = True
    assert changed_share(before, after) == 0.25
    assert changed_share(np.array([[1, 2]], np.uint8), np.array([[1, 3]], np.uint8)) == 0.5
