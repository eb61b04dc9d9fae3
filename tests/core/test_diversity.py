"""Spread-out queries against naive loops that compute every distance anew, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeseg.core import diversity
from activeseg.core.clips import ClipLimits
from activeseg.core.diversity import Load, draw_in_proportion, k_center, k_means_plus_plus
from activeseg.core.kcenter import greedy_k_center
from activeseg.core.ranking import Limits, Ranking
from activeseg.errors import NonFiniteScoreError

Array = npt.NDArray[Any]


def loader(vectors: dict[int, Array]) -> Load:
    """What the database does: in any order, without those that are not there."""
    width = len(next(iter(vectors.values()), ()))

    def load(image_ids: Sequence[int]) -> tuple[list[int], npt.NDArray[np.float32]]:
        found = [image_id for image_id in reversed(image_ids) if image_id in vectors]
        return found, np.array([vectors[image_id] for image_id in found], dtype=np.float32).reshape(len(found), width)

    return load


def naive(
    ranking: Ranking, vectors: dict[int, Array], centers: list[int], size: int, *, weighted: bool, control: list[int]
) -> list[int]:
    """Image ids by argmax s / max s * distance to the nearest center; stops where all that is left is 0."""
    scores = dict(zip(ranking.image_ids.tolist(), ranking.scores.tolist(), strict=True))
    known = [vectors[i].astype(float) for i in [*centers, *control] if i in vectors]
    rest = [i for i in ranking.image_ids.tolist() if i in vectors and i not in control]
    best = max((scores[i] for i in scores if i in vectors), default=0.0)
    chosen: list[int] = []
    while rest and len(chosen) < size:
        worth = []
        for i in rest:
            far = min((float(((vectors[i] - c) ** 2).sum()) ** 0.5 for c in known), default=1.0)
            worth.append((scores[i] / best if weighted and best > 0 else 1.0) * far)
        if max(worth) <= 0:
            break
        chosen.append(rest.pop(worth.index(max(worth))))
        known.append(vectors[chosen[-1]].astype(float))
    return chosen


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 25), st.integers(0, 4), st.integers(1, 12), st.booleans(), st.integers(0, 2))
def test_k_center_equals_a_naive_implementation_ties_and_duplicates_included(
    seed: int, count: int, labelled: int, size: int, weighted: bool, drawn: int
) -> None:
    rng = np.random.default_rng(seed)
    # Along a line of whole numbers, with scores that are powers of two: distances and products are exact, ties common.
    vectors = {i: np.array([float(rng.integers(-4, 5)), 0.0]) for i in range(count + labelled) if rng.random() < 0.9}
    ranking = Ranking.of(range(count), rng.choice([0.0, 0.5, 1.0, 2.0], size=count))
    control = rng.permutation(count)[: min(drawn, count)].tolist()
    limits = Limits(count)
    for place in control:
        limits.take(place)
    asked = list(range(count, count + labelled))
    picked = k_center(ranking, loader(vectors), asked, weighted=weighted)(size, control, limits)
    places = [place for place, why in picked if not why.startswith("by rank")]
    ids = ranking.image_ids[places].tolist()
    controls = ranking.image_ids[control].tolist()
    assert ids == naive(ranking, vectors, asked, size, weighted=weighted, control=controls)

    rest = [place for place, why in picked if why.startswith("by rank")]
    left = [place for place in range(count) if place not in control and place not in places]
    assert rest == left[: size - len(places)]


def test_without_weights_it_is_the_core_set_algorithm() -> None:
    import torch

    rng = np.random.default_rng(5)
    features = rng.normal(size=(400, 16)).astype(np.float32)
    ranking = Ranking.of(range(400), np.arange(400, 0, -1.0))
    asked = list(range(1000, 1007))
    vectors = dict(enumerate(features)) | {i: rng.normal(size=16).astype(np.float32) for i in asked}
    picked = k_center(ranking, loader(vectors), asked, weighted=False)(40, [], Limits(400))
    labelled = torch.tensor(np.array([vectors[i] for i in asked]))
    assert [place for place, _ in picked] == greedy_k_center(torch.from_numpy(features), 40, labeled=labelled)


def test_only_the_best_are_candidates_when_scores_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "BEST", 5)
    ranking = Ranking.of(range(50), np.arange(50, 0, -1.0))
    vectors = {i: np.array([float(i)]) for i in range(50)}
    asked_for: list[int] = []

    def load(image_ids: Sequence[int]) -> tuple[list[int], npt.NDArray[np.float32]]:
        asked_for.append(len(image_ids))
        return loader(vectors)(image_ids)

    picked = k_center(ranking, load, [], weighted=True)(4, [49], Limits(50))
    assert {place for place, _ in picked} <= set(range(5))
    assert asked_for == [5, 1], "embeddings of the whole pool were read"


def test_images_without_an_embedding_come_by_rank_and_say_so() -> None:
    ranking = Ranking.of(range(6), [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    vectors = {3: np.array([0.0]), 5: np.array([1.0])}
    picked = k_center(ranking, loader(vectors), [], weighted=True)(4, [], Limits(6))
    assert [place for place, _ in picked] == [3, 5, 0, 1]
    assert [why for _, why in picked] == [
        "first, far from nothing",
        "distance 1 to the nearest taken",
        "by rank, no embedding compared",
        "by rank, no embedding compared",
    ]
    for pick in (k_center(ranking, loader({}), [7], weighted=False), k_means_plus_plus(ranking, loader({}), seed=1)):
        assert [place for place, _ in pick(2, [], Limits(6))] == [0, 1]


def test_equal_images_and_scores_of_zero_fill_the_query_by_rank() -> None:
    same = {i: np.ones(3) for i in range(5)}
    for scores in ([1.0] * 5, [0.0] * 5):
        picked = k_center(Ranking.of(range(5), scores), loader(same), [], weighted=True)(4, [], Limits(5))
        assert [place for place, _ in picked] == [0, 1, 2, 3]
        assert {why for _, why in picked[1:]} == {"by rank, none apart is left"}


@pytest.mark.parametrize("gradient", [np.zeros(3), np.ones(3)], ids=["of a sure network", "all equal"])
@pytest.mark.parametrize("control", [[], [2]])
def test_gradients_that_tell_nothing_apart_fill_the_query_by_rank(gradient: Array, control: list[int]) -> None:
    ranking, limits = Ranking.of(range(5), [3.0, 2.0, 1.0, 0.5, 0.25]), Limits(5)
    for place in control:
        limits.take(place)
    picked = k_means_plus_plus(ranking, loader(dict.fromkeys(range(5), gradient)), seed=3)(4, control, limits)
    assert [place for place, _ in picked] == [place for place in range(5) if place not in control][:4]
    whys = [why for _, why in picked]
    longest = bool(gradient.any()) and not control
    assert whys[: 1 if longest else 0] == ["longest gradient"][: 1 if longest else 0]
    assert set(whys[1 if longest else 0 :]) == {"by rank, none apart is left"}


@pytest.mark.parametrize("pick", ["kcenter", "badge"])
def test_limits_hold_and_an_empty_ranking_gives_nothing(pick: str) -> None:
    ranking = Ranking.of(range(60), np.arange(60, 0, -1.0))
    vectors = {i: np.random.default_rng(i).normal(size=4) for i in range(60)}
    clips, frames = np.repeat([0, 1], 30), np.tile(np.arange(30), 2)
    limits = ClipLimits(clips, frames, min_frame_gap=5, max_per_group=3, asked={0: [0]})

    def picker(of: Ranking) -> Any:
        load = loader(vectors)
        return k_center(of, load, [], weighted=False) if pick == "kcenter" else k_means_plus_plus(of, load, seed=2)

    places = [place for place, _ in picker(ranking)(10, [], limits)]
    assert sorted(Counter(clips[places].tolist()).items()) == [(0, 3), (1, 3)]
    for clip in (0, 1):
        taken = sorted(frames[place] for place in places if clips[place] == clip)
        assert all(b - a >= 5 for a, b in pairwise(taken))
    assert min(frames[place] for place in places if clips[place] == 0) >= 5
    assert picker(Ranking.of([], []))(3, [], Limits(0)) == []


@pytest.mark.slow
def test_k_means_plus_plus_draws_in_proportion_to_the_squared_distance() -> None:
    """The first is the longest; then chances are D^2 / sum D^2; the control arm counts as taken."""
    ranking = Ranking.of(range(5), [5.0, 4.0, 3.0, 2.0, 1.0])
    vectors = {i: np.array([x, 0.0]) for i, x in enumerate([1.0, -2.0, 4.0, 0.5, 1.0])}
    rounds = 400
    second: Counter[int] = Counter()
    for seed in range(rounds):
        (first, why), (place, _) = k_means_plus_plus(ranking, loader(vectors), seed=seed)(2, [], Limits(5))
        assert (first, why) == (2, "longest gradient")
        second[place] += 1
    squares = {i: (x - 4.0) ** 2 for i, x in enumerate([1.0, -2.0, 4.0, 0.5, 1.0]) if i != 2}
    for place, square in squares.items():
        expected = rounds * square / sum(squares.values())
        assert abs(second[place] - expected) < 4 * expected**0.5
    assert second[2] == 0

    free = Limits(5)
    free.take(1)
    drawn = Counter(k_means_plus_plus(ranking, loader(vectors), seed=seed)(1, [1], _copy(free))[0][0] for seed in range(rounds))
    expected = rounds * 36 / (9 + 36 + 6.25 + 9)
    assert abs(drawn[2] - expected) < 4 * expected**0.5


def _copy(limits: Limits) -> Limits:
    other = Limits(len(limits.free))
    other.free = limits.free.copy()
    return other


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1).filter(any), st.floats(0, 1, exclude_max=True))
def test_a_draw_falls_where_the_sum_reaches_it(weights: list[float], uniform: float) -> None:
    index = draw_in_proportion(np.array(weights), uniform)
    assert weights[index] > 0
    assert sum(weights[:index]) <= uniform * sum(weights) <= sum(weights[: index + 1])


def test_a_seed_repeats_the_draw() -> None:
    ranking = Ranking.of(range(40), np.ones(40))
    vectors = {i: np.random.default_rng(i).normal(size=4) for i in range(40)}
    draws = [k_means_plus_plus(ranking, loader(vectors), seed=seed)(8, [], Limits(40)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_embeddings_that_are_no_numbers_are_refused() -> None:
    ranking = Ranking.of(range(3), [1.0, 1.0, 1.0])
    vectors = {0: np.array([1.0]), 1: np.array([np.nan])}
    with pytest.raises(NonFiniteScoreError, match="embeddings"):
        k_center(ranking, loader(vectors), [], weighted=False)(2, [], Limits(3))
