from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeseg.core.ranking import Limits, Pick, Ranking, pick_in_order
from activeseg.core.selection import freeze_validation, select_bootstrap, select_query
from activeseg.errors import ConfigError, NonFiniteScoreError
from activeseg.records import QueryItem, RankedImage

RANKING = [RankedImage(image_id=100 + place, score=50.0 - place) for place in range(50)]


def ranking_of(images: Sequence[RankedImage]) -> Ranking:
    return Ranking.of([one.image_id for one in images], [one.score for one in images], "doubt")


def select(images: Sequence[RankedImage], size: int, *, control_share: float, seed: int) -> list[QueryItem]:
    return list(select_query(images, size, control_share=control_share, seed=seed))


def arm(items: list[QueryItem], name: str) -> list[QueryItem]:
    return [item for item in items if item.arm == name]


def test_images_one_by_one_are_chosen_as_a_ranking_of_them_is() -> None:
    shuffled = random.Random(0).sample(RANKING, len(RANKING))
    query = select_query(shuffled, 7, control_share=0.3, seed=4)
    ranked = select_query(
        Ranking.of([one.image_id for one in RANKING], [one.score for one in RANKING]), 7, control_share=0.3, seed=4
    )
    assert query == ranked
    assert (len(query), list(query), query[0], query[:2]) == (7, query.items, query.items[0], query.items[:2])


def test_without_control_the_query_is_the_top_of_the_ranking() -> None:
    items = select(RANKING, 6, control_share=0.0, seed=1)
    assert sorted(item.image_id for item in items) == [100, 101, 102, 103, 104, 105]
    assert {(item.image_id, item.rank, item.score, item.arm) for item in items} == {
        (100 + place, place + 1, 50.0 - place, "chosen") for place in range(6)
    }


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([0.0, 1.0, 2.0])), unique_by=lambda pair: pair[0]),
    st.integers(1, 30),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_a_query_repeats_no_image_and_takes_the_best_of_the_rest(
    scores: list[tuple[int, float]], size: int, share: float, seed: int
) -> None:
    ranking = [RankedImage(*pair) for pair in scores]
    items = select(ranking, size, control_share=share, seed=seed)
    ids = [item.image_id for item in items]
    assert len(ids) == len(set(ids)) == min(size, len(ranking))
    assert set(ids) <= {image_id for image_id, _ in scores}

    control = {item.image_id for item in arm(items, "control")}
    rest = sorted((pair for pair in scores if pair[0] not in control), key=lambda pair: (-pair[1], pair[0]))
    assert {item.image_id for item in arm(items, "chosen")} == {image_id for image_id, _ in rest[: len(ids) - len(control)]}


def test_order_of_the_input_does_not_matter() -> None:
    shuffled = RANKING.copy()
    random.Random(3).shuffle(shuffled)
    assert select(shuffled, 10, control_share=0.3, seed=5) == select(RANKING, 10, control_share=0.3, seed=5)


def test_a_seed_repeats_the_query_and_another_one_changes_it() -> None:
    first = select(RANKING, 12, control_share=0.25, seed=1)
    assert select(RANKING, 12, control_share=0.25, seed=1) == first
    assert select(RANKING, 12, control_share=0.25, seed=2) != first


def test_ties_go_by_image_id() -> None:
    equal = [RankedImage(image_id, 1.0) for image_id in (9, 3, 7, 1, 5)]
    items = select(equal, 3, control_share=0.0, seed=0)
    assert {(item.image_id, item.rank) for item in items} == {(1, 1), (3, 2), (5, 3)}


@pytest.mark.parametrize(
    ("size", "share", "expected"),
    [(10, 0.0, 0), (10, 0.2, 2), (12, 0.1, 1), (10, 0.25, 3), (10, 1.0, 10), (4, 0.1, 1), (1, 0.1, 0), (1, 0.5, 1)],
)
def test_control_share_is_rounded_half_up_and_never_to_nothing(size: int, share: float, expected: int) -> None:
    assert len(arm(select(RANKING, size, control_share=share, seed=0), "control")) == expected


def test_control_share_is_taken_of_the_images_there_are() -> None:
    items = select(RANKING[:6], 50, control_share=0.5, seed=0)
    assert (len(items), len(arm(items, "control"))) == (6, 3)


@pytest.mark.slow
def test_control_arm_is_an_unbiased_sample_of_the_whole_ranking() -> None:
    """Every image is drawn equally often, those at the top included."""
    rounds, drawn = 4000, 3
    counts = Counter(
        item.rank for seed in range(rounds) for item in arm(select(RANKING[:20], 6, control_share=0.5, seed=seed), "control")
    )
    expected = rounds * drawn / 20
    chi_square = sum((counts[rank] - expected) ** 2 / expected for rank in range(1, 21))
    assert chi_square < 43.8  # 99.9 % quantile with 19 degrees of freedom


@pytest.mark.slow
def test_control_arm_estimates_the_mean_score_of_the_pool() -> None:
    scores = [
        item.score
        for seed in range(3000)
        for item in arm(select(RANKING, 8, control_share=0.25, seed=seed), "control")
        if item.score is not None
    ]
    pool = [ranked.score for ranked in RANKING]
    error = math.sqrt(sum((s - 25.5) ** 2 for s in pool) / len(pool) / len(scores))
    assert abs(sum(scores) / len(scores) - sum(pool) / len(pool)) < 4 * error


@pytest.mark.slow
def test_no_place_in_the_shown_order_tells_the_arm() -> None:
    """Over many seeds every place is equally likely to hold a control image."""
    rounds = 3000
    control = Counter[int]()
    for seed in range(rounds):
        items = select(RANKING, 6, control_share=1 / 3, seed=seed)
        assert [item.shown_order for item in items] == list(range(6))
        control.update(item.shown_order for item in arm(items, "control"))
    expected = rounds * 2 / 6
    assert sum((control[place] - expected) ** 2 / expected for place in range(6)) < 20.5  # 99.9 %, 5 df


def test_the_chosen_arm_is_shown_from_its_most_uncertain_image_on_and_the_control_arm_in_random_order() -> None:
    falling = 0
    for seed in range(200):
        items = select(RANKING, 8, control_share=0.25, seed=seed)
        chosen = [item.score for item in items if item.arm == "chosen" and item.score is not None]
        assert chosen == sorted(chosen, reverse=True)
        first, second = (item.score for item in items if item.arm == "control")
        falling += first is not None and second is not None and first > second
    assert 70 < falling < 130


def test_reason_names_rank_and_pool_and_tells_control_draws() -> None:
    items = select(RANKING, 4, control_share=0.25, seed=0)
    for item in items:
        assert item.reason.endswith(f"rank {item.rank} of 50")
        assert ("random control draw" in item.reason) == (item.arm == "control")


def test_reason_tells_the_score_and_what_a_picker_says_within_what_a_row_holds() -> None:
    assert select(RANKING, 1, control_share=0, seed=0)[0].reason == "score 50, rank 1 of 50"
    large = ranking_of([RankedImage(1, 123456.78), RankedImage(2, 0.00123456)])
    assert [item.reason for item in select_query(large, 2, control_share=0, seed=0).items] == [
        "doubt 123457, rank 1 of 2",
        "doubt 0.00123, rank 2 of 2",
    ]

    def wordy(size: int, control: Sequence[int], limits: Limits) -> list[Pick]:
        return pick_in_order([4], size, limits, "far " * 99)

    item, *_ = select_query(ranking_of(RANKING), 1, control_share=0, seed=0, pick=wordy).items
    assert (item.image_id, item.rank, len(item.reason)) == (104, 5, 200)


def test_a_picker_orders_the_chosen_arm_and_the_best_of_the_rest_fill_what_it_leaves() -> None:
    def three(size: int, control: Sequence[int], limits: Limits) -> list[Pick]:
        assert size == 5
        return pick_in_order([9, 1, 9, 4], size, limits, "hand")

    selection = select_query(ranking_of(RANKING), 5, control_share=0, seed=3, pick=three)
    assert [item.rank for item in selection.items] == [10, 2, 5, 1, 3]
    assert [item.reason.startswith("hand") for item in selection.items] == [True, True, True, False, False]
    assert selection.filled == 2
    assert {item.reason.partition(", doubt")[0] for item in selection.items[3:]} == {"by rank, gaps and caps left too few"}


def test_the_control_arm_is_drawn_before_anything_is_picked_and_whatever_the_limits_say() -> None:
    seen: list[int] = []

    def none(size: int, control: Sequence[int], limits: Limits) -> list[Pick]:
        seen.extend(control)
        assert not limits.free[list(control)].any()
        return []

    closed = Limits(50)
    closed.free[:] = False
    selection = select_query(ranking_of(RANKING), 10, control_share=0.3, seed=5, pick=none, limits=closed)
    control = {item.rank for item in arm(selection.items, "control")}
    assert control == {item.rank for item in arm(select(RANKING, 10, control_share=0.3, seed=5), "control")}
    assert control == {place + 1 for place in seen}
    assert selection.filled == 7


def test_an_empty_ranking_gives_an_empty_query() -> None:
    assert select([], 5, control_share=0.5, seed=0) == []


@pytest.mark.parametrize(("size", "share"), [(0, 0.1), (-1, 0.1), (5, -0.1), (5, 1.1), (5, math.nan)])
def test_bad_arguments_are_refused(size: int, share: float) -> None:
    with pytest.raises(ConfigError):
        select(RANKING, size, control_share=share, seed=0)


def test_broken_rankings_are_refused() -> None:
    with pytest.raises(NonFiniteScoreError):
        select([RankedImage(1, math.nan)], 1, control_share=0, seed=0)
    with pytest.raises(ConfigError, match="repeated"):
        select([RankedImage(1, 1.0), RankedImage(1, 2.0)], 1, control_share=0, seed=0)


# --- the first query -------------------------------------------------------------------------------------------------


def test_the_first_query_is_random_unranked_and_repeatable() -> None:
    items = select_bootstrap(range(100), 10, seed=4)
    assert len({item.image_id for item in items}) == 10
    assert {(item.rank, item.score, item.arm) for item in items} == {(None, None, "control")}
    assert [item.shown_order for item in items] == list(range(10))
    assert select_bootstrap(reversed(range(100)), 10, seed=4) == items
    assert select_bootstrap(range(100), 10, seed=5) != items
    assert len(select_bootstrap(range(3), 10, seed=4)) == 3
    assert select_bootstrap([], 10, seed=4) == []


@pytest.mark.parametrize("groups", [None, {i: "long" if i < 12 else None if i > 17 else "short" for i in range(20)}])
def test_the_first_query_gives_every_image_the_same_chance(groups: dict[int, str | None] | None) -> None:
    rounds = 4000
    counts = Counter(
        item.image_id for seed in range(rounds) for item in select_bootstrap(range(20), 6, seed=seed, groups=groups)
    )
    expected = rounds * 6 / 20
    # Draws of one round are dependent without replacement, which only makes the statistic smaller.
    assert sum((counts[image_id] - expected) ** 2 / expected for image_id in range(20)) < 43.8


@pytest.mark.parametrize("seed", range(20))
def test_the_first_query_takes_from_groups_in_proportion(seed: int) -> None:
    groups = {image_id: f"clip {image_id // 25}" for image_id in range(100)}
    taken = Counter(groups[item.image_id] for item in select_bootstrap(range(100), 8, seed=seed, groups=groups))
    assert taken == {f"clip {clip}": 2 for clip in range(4)}


def test_the_first_query_refuses_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="size"):
        select_bootstrap([1, 2], 0, seed=0)
    with pytest.raises(ConfigError, match="repeated"):
        select_bootstrap([1, 1], 1, seed=0)


# --- the validation split --------------------------------------------------------------------------------------------

groupings = st.dictionaries(st.integers(0, 60), st.sampled_from([None, "a", "b", "c", "d"]))


@settings(deadline=None)
@given(groupings, st.integers(0, 12), st.integers(0, 12), st.integers(0, 1000))
def test_validation_takes_whole_groups_and_leaves_enough_for_training(
    annotated: dict[int, str | None], size: int, keep: int, seed: int
) -> None:
    frozen = freeze_validation(annotated, size, seed=seed, keep_for_training=keep)
    assert frozen <= annotated.keys()
    assert not frozen or len(annotated) - len(frozen) >= keep
    taken = {annotated[image_id] for image_id in frozen} - {None}
    assert all(image_id in frozen for image_id, group in annotated.items() if group in taken)
    sizes = [1 if group is None else Counter(annotated.values())[group] for group in annotated.values()]
    if len(frozen) > size:  # only where no group was small enough, and then the smallest
        assert len(taken) == 1
        assert len(frozen) == min(sizes) > size > 0


def test_validation_fills_up_to_its_size_from_ungrouped_images() -> None:
    annotated = dict.fromkeys(range(30))
    frozen = freeze_validation(annotated, 8, seed=1, keep_for_training=8)
    assert len(frozen) == 8
    assert freeze_validation(dict(reversed(annotated.items())), 8, seed=1, keep_for_training=8) == frozen
    assert freeze_validation(annotated, 8, seed=2, keep_for_training=8) != frozen
    assert len(freeze_validation(dict.fromkeys(range(10)), 8, seed=1, keep_for_training=8)) == 2


def test_validation_draws_every_image_equally_often() -> None:
    rounds = 3000
    counts = Counter(
        image_id
        for seed in range(rounds)
        for image_id in freeze_validation(dict.fromkeys(range(12)), 3, seed=seed, keep_for_training=0)
    )
    expected = rounds * 3 / 12
    assert sum((counts[image_id] - expected) ** 2 / expected for image_id in range(12)) < 31.3  # 99.9 %, 11 df


def test_validation_takes_the_smallest_group_where_all_are_larger_than_its_size() -> None:
    annotated = {i: "small" if i < 5 else "large" for i in range(20)}
    assert freeze_validation(annotated, 3, seed=0, keep_for_training=10) == set(range(5))


@pytest.mark.parametrize(("size", "keep"), [(0, 0), (3, 20), (3, 16), (3, 99)])
def test_validation_stays_empty_rather_than_starve_training(size: int, keep: int) -> None:
    annotated = {i: "small" if i < 5 else "large" for i in range(20)}
    assert freeze_validation(annotated, size, seed=0, keep_for_training=keep) == set()


def test_a_group_named_like_an_image_is_another_group() -> None:
    annotated: dict[int, str | None] = {1: None, 2: "1", 3: "1"}
    for seed in range(10):
        assert freeze_validation(annotated, 1, seed=seed, keep_for_training=0) == {1}


def test_validation_refuses_negative_numbers() -> None:
    with pytest.raises(ConfigError, match="size"):
        freeze_validation({}, -1, seed=0, keep_for_training=0)
    with pytest.raises(ConfigError, match="keep_for_training"):
        freeze_validation({}, 1, seed=0, keep_for_training=-1)
