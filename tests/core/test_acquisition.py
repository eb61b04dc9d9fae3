from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeseg.core.acquisition import ACQUISITIONS, acquisition_value, class_entropy, rank_images
from activeseg.errors import ConfigError, NonFiniteScoreError
from activeseg.records import ClassScore, ImageScore

SCORE = ImageScore(
    image_id=7,
    entropy_sum=10.0,
    entropy_mean=0.5,
    valid_pixels=20,
    entropy_share=0.25,
    margin_mean=0.3,
    least_confidence_mean=0.2,
    grid=(10.0,) + (0.0,) * 15,
    classes=(ClassScore(0, 6.0, 15, 7.0, 0.9), ClassScore(2, 4.0, 5, 3.0, None)),
)

# Few values, so that ties are common; order of arrival is arbitrary.
scored_images = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from([-1.5, -0.0, 0.0, 2.25, 3.0, 1e300])), unique_by=lambda pair: pair[0]
)


@given(scored_images)
def test_ranking_equals_brute_force(scores: list[tuple[int, float]]) -> None:
    """Place of an image = how many beat it: a higher score, or the same score and a lower id."""
    expected: dict[int, int] = {}
    for image_id, score in scores:
        expected[sum(s > score or (s == score and i < image_id) for i, s in scores)] = image_id
    assert [ranked.image_id for ranked in rank_images(scores)] == [expected[place] for place in range(len(scores))]


def test_ranking_is_highest_first_and_ties_go_by_image_id() -> None:
    ranking = rank_images([(4, 1.0), (9, 3.0), (2, 1.0), (5, 2.0), (3, 1.0)])
    assert [(r.image_id, r.score) for r in ranking] == [(9, 3.0), (5, 2.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_ranking_does_not_depend_on_order_of_arrival() -> None:
    scores = [(image_id, float(image_id % 4)) for image_id in range(40)]
    shuffled = scores.copy()
    random.Random(1).shuffle(shuffled)
    assert rank_images(iter(shuffled)) == rank_images(scores)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_raises_and_never_ranks(bad: float) -> None:
    with pytest.raises(NonFiniteScoreError, match="image 3 has score"):
        rank_images([(1, 1.0), (3, bad), (2, 2.0)])


def test_an_image_ranks_once() -> None:
    with pytest.raises(ConfigError, match=r"repeated image ids: \[1\]"):
        rank_images([(1, 1.0), (2, 1.0), (1, 2.0)])


def test_an_empty_pool_has_an_empty_ranking() -> None:
    assert rank_images([]) == []


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_an_acquisition_function_reads_its_own_statistic(name: str) -> None:
    assert acquisition_value(replace(SCORE, **{name: 123.0}), name) == 123.0
    assert acquisition_value(SCORE, name) == getattr(SCORE, name)


def test_an_unknown_acquisition_function_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'entropy'; known: entropy_sum, entropy_mean"):
        acquisition_value(SCORE, "entropy")


def test_class_entropy_sums_the_named_classes_once() -> None:
    assert class_entropy(SCORE, [2]) == 4.0
    assert class_entropy(SCORE, [0, 2, 0]) == SCORE.entropy_sum
    with pytest.raises(ConfigError, match=r"\[1\] have no score"):
        class_entropy(SCORE, [0, 1])


def test_ranking_and_selection_load_no_torch() -> None:
    code = "import sys, activeseg.core.selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
