from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from activeseg.core.consensus import agreement, majority
from activeseg.core.labels import UNLABELED, Mask
from activeseg.errors import MaskError

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4))
VALUES = st.sampled_from([0, 1, 2, UNLABELED])


def exclusive(shape: tuple[int, int]) -> st.SearchStrategy[Mask]:
    return arrays.arrays(np.uint8, shape, elements=VALUES)


def planes(shape: tuple[int, int]) -> st.SearchStrategy[Mask]:
    return arrays.arrays(np.bool_, (3, *shape))


def several(least: int) -> st.SearchStrategy[list[Mask]]:
    kinds = SHAPES.flatmap(lambda shape: st.sampled_from([exclusive(shape), planes(shape)]))
    return kinds.flatmap(lambda masks: st.lists(masks, min_size=least, max_size=5))


def pixel_by_pixel(masks: list[Mask]) -> Mask:
    """The same by counting: what the docstring says, in plain Python."""
    outcome = masks[0].copy()
    for place in np.ndindex(*masks[0].shape):
        votes = Counter(mask[place].item() for mask in masks)
        if masks[0].ndim == 3:
            outcome[place] = votes[True] > votes[False]
            continue
        votes.pop(UNLABELED, None)
        most = [value for value, count in votes.items() if count == max(votes.values())]
        outcome[place] = most[0] if len(most) == 1 else UNLABELED
    return outcome


@pytest.mark.slow
@given(several(1))
def test_the_majority_is_what_counting_pixel_by_pixel_gives(masks: list[Mask]) -> None:
    found = majority(masks)
    assert found.dtype == masks[0].dtype
    assert np.array_equal(found, pixel_by_pixel(masks))


@pytest.mark.slow
@given(several(1), st.randoms())
def test_the_order_of_annotators_does_not_matter(masks: list[Mask], random: object) -> None:
    shuffled = list(masks)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert np.array_equal(majority(shuffled), majority(masks))


@pytest.mark.slow
@given(several(1))
def test_of_one_mask_many_times_it_is_that_mask(masks: list[Mask]) -> None:
    assert np.array_equal(majority([masks[0]] * 3), masks[0])
    assert agreement([masks[0]] * 3) == [1.0] * 3


@pytest.mark.slow
@given(several(2))
def test_agreement_is_the_mean_share_of_equal_pixels_with_each_other_mask(masks: list[Mask]) -> None:
    flat = [mask.reshape(-1, *mask.shape[-2:]) for mask in masks]
    expected = []
    for one, mine in enumerate(flat):
        shares = [
            sum((mine[:, y, x] == theirs[:, y, x]).all() for y, x in np.ndindex(*mine.shape[1:])) / mine[0].size
            for other, theirs in enumerate(flat)
            if other != one
        ]
        expected.append(sum(shares) / len(shares))
    assert agreement(masks) == pytest.approx(expected)


def test_who_left_a_pixel_out_has_no_vote_there_and_a_tie_is_nobodys() -> None:
    rows = [[0, 0, 1, UNLABELED, UNLABELED], [0, 1, 1, UNLABELED, 2], [1, 2, UNLABELED, UNLABELED, UNLABELED]]
    masks = [np.array([row], np.uint8) for row in rows]
    assert majority(masks).tolist() == [[0, UNLABELED, 1, UNLABELED, 2]]
    assert majority(masks[:2]).tolist() == [[0, UNLABELED, 1, UNLABELED, 2]]


def test_more_than_255_annotators_are_counted() -> None:
    masks = [np.array([[1]], np.uint8)] * 300 + [np.array([[0]], np.uint8)] * 260
    assert majority(masks).tolist() == [[1]]
    assert majority([mask[None] == 1 for mask in masks]).tolist() == [[[True]]]


def test_masks_that_do_not_belong_together_are_refused() -> None:
    small, large = np.zeros((1, 2), np.uint8), np.zeros((2, 2), np.uint8)
    for masks in ([], [small, large], [small, small.astype(bool)[None]]):
        with pytest.raises(MaskError):
            majority(masks)
    for masks in ([small], [small, large]):
        with pytest.raises(MaskError):
            agreement(masks)
