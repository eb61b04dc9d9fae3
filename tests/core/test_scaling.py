from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeseg.core.labels import UNLABELED
from activeseg.core.scaling import restore_mask, shown_size, shrink_mask
from activeseg.errors import MaskError

VALUES = np.array([0, 1, 2, 11, UNLABELED], np.uint8)


@st.composite
def cases(draw):
    """A full mask of either kind and a size to show it at."""
    height, width = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    size = draw(st.integers(1, height)), draw(st.integers(1, width))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        return rng.random((draw(st.integers(1, 4)), height, width)) < 0.5, size, rng
    return rng.choice(VALUES, (height, width)), size, rng


def edited(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask with some pixels drawn over."""
    other = rng.random(mask.shape) < 0.5 if mask.dtype == np.bool_ else rng.choice(VALUES, mask.shape)
    return np.where(rng.random(mask.shape) < 0.3, other, mask)


def cell(position: int, total: int, other: int) -> int:
    """The pixel of `other` that holds the centre of pixel `position` of `total`, by exact fractions."""
    centre = (Fraction(position) + Fraction(1, 2)) / total
    return next(k for k in range(other) if Fraction(k, other) <= centre < Fraction(k + 1, other))


def slow_shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    result = np.empty((*mask.shape[:-2], *size), mask.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            result[..., y, x] = mask[..., cell(y, size[0], mask.shape[-2]), cell(x, size[1], mask.shape[-1])]
    return result


def slow_restore(drawn: np.ndarray, shown: np.ndarray, full: np.ndarray) -> np.ndarray:
    result = np.empty_like(full)
    for place in np.ndindex(full.shape):
        y, x = (cell(place[axis], full.shape[axis], drawn.shape[axis]) for axis in (-2, -1))
        small = (*place[:-2], y, x)
        result[place] = full[place] if drawn[small] == shown[small] else drawn[small]
    return result


@pytest.mark.slow
@settings(deadline=None)  # the second implementation is slow on purpose
@given(cases())
def test_shrinking_takes_the_value_at_the_centre_of_each_pixel(case):
    full, size, _ = case
    assert np.array_equal(shrink_mask(full, size), slow_shrink(full, size))


@settings(deadline=None)  # the second implementation is slow on purpose
@given(cases())
def test_an_untouched_submission_gives_the_full_mask_back_bit_for_bit(case):
    full, size, _ = case
    shown = shrink_mask(full, size)
    restored = restore_mask(shown.copy(), full.shape[-2:], shown=shown, full=full)
    assert restored.dtype == full.dtype
    assert restored.tobytes() == full.tobytes()


@pytest.mark.slow
@settings(deadline=None)  # the second implementation is slow on purpose
@given(cases())
def test_what_was_drawn_counts_and_the_rest_keeps_its_fine_detail(case):
    full, size, rng = case
    shown = shrink_mask(full, size)
    drawn = edited(shown, rng)
    before = full.copy()
    restored = restore_mask(drawn, full.shape[-2:], shown=shown, full=full)
    assert np.array_equal(restored, slow_restore(drawn, shown, full))
    assert np.array_equal(full, before), "the prediction itself is left alone"


@settings(deadline=None)  # the second implementation is slow on purpose
@given(cases())
def test_the_restored_mask_shown_again_is_what_the_person_drew(case):
    full, size, rng = case
    drawn = edited(shrink_mask(full, size), rng)
    for context in ({"shown": shrink_mask(full, size), "full": full}, {}):
        assert np.array_equal(shrink_mask(restore_mask(drawn, full.shape[-2:], **context), size), drawn)


@pytest.mark.slow
@settings(deadline=None)  # the second implementation is slow on purpose
@given(cases())
def test_without_a_prediction_each_pixel_takes_what_was_drawn_over_it(case):
    full, size, rng = case
    drawn = edited(shrink_mask(full, size), rng)
    restored = restore_mask(drawn, full.shape[-2:])
    assert np.array_equal(restored, slow_restore(drawn, ~drawn, full))


@settings(deadline=None)  # the second implementation is slow on purpose
@given(cases())
def test_at_the_images_own_size_the_drawn_mask_is_the_answer(case):
    full, _, rng = case
    drawn = edited(full, rng)
    assert shrink_mask(full, full.shape[-2:]) is full
    assert np.array_equal(restore_mask(drawn, full.shape[-2:], shown=full, full=full), drawn)
    assert np.array_equal(restore_mask(drawn, full.shape[-2:]), drawn)


def test_erasing_a_whole_pixel_erases_all_it_covers_and_unlabelled_is_a_value_like_any_other():
    full = np.array([[1, 1, 2, 2], [1, 1, 2, UNLABELED], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    shown = shrink_mask(full, (2, 2))
    assert shown.tolist() == [[1, UNLABELED], [0, 0]]
    drawn = shown.copy()
    drawn[0, 0] = UNLABELED
    expected = [[255, 255, 2, 2], [255, 255, 2, 255], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert restore_mask(drawn, (4, 4), shown=shown, full=full).tolist() == expected
    drawn[0, 1] = 2
    assert restore_mask(drawn, (4, 4), shown=shown, full=full)[:2, 2:].tolist() == [[2, 2], [2, 2]]


def test_planes_are_decided_one_by_one():
    full = np.zeros((2, 2, 2), np.bool_)
    full[0, 0, 0] = full[1, 1, 1] = True
    shown = shrink_mask(full, (1, 1))
    assert shown.ravel().tolist() == [False, True]
    drawn = np.array([[[True]], [[True]]])
    restored = restore_mask(drawn, (2, 2), shown=shown, full=full)
    assert restored[0].all()
    assert restored[1].tolist() == full[1].tolist()


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.one_of(st.none(), st.integers(1, 5_000)))
def test_the_shown_size_never_grows_keeps_the_aspect_and_has_pixels(height, width, longest):
    rows, columns = shown_size(height, width, longest)
    if longest is None or max(height, width) <= longest:
        assert (rows, columns) == (height, width)
        return
    assert max(rows, columns) == longest
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    scale = Fraction(longest, max(height, width))
    for got, side in ((rows, height), (columns, width)):
        assert abs(got - side * scale) <= Fraction(1, 2) or got == 1


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((360, 480), 1280, (360, 480)),
        ((3000, 4000), 1280, (960, 1280)),
        ((4000, 3000), 1280, (1280, 960)),
        ((1, 9000), 64, (1, 64)),
        ((5, 10), 5, (3, 5)),  # 2.5 is rounded up
    ],
)
def test_sizes_by_hand(size, longest, expected):
    assert shown_size(*size, longest) == expected


def test_masks_that_do_not_belong_together_are_refused():
    index, planes = np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4), np.bool_)
    with pytest.raises(MaskError, match="at most 4x4"):
        shrink_mask(index, (4, 5))
    with pytest.raises(MaskError, match="at most 3x3"):
        restore_mask(index, (3, 3))
    with pytest.raises(MaskError, match="both"):
        restore_mask(index, (8, 8), shown=index)
    with pytest.raises(MaskError, match="shown prediction"):
        restore_mask(index, (8, 8), shown=planes, full=np.zeros((8, 8), np.uint8))
    with pytest.raises(MaskError, match="full prediction"):
        restore_mask(planes, (8, 8), shown=planes, full=np.zeros((2, 8, 9), np.bool_))
