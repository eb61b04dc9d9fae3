"""The first query: random images to validate with, and the rest as far from them and each other as can be."""

from __future__ import annotations

import numpy as np
import pytest

from activeseg.core.cold_start import select_spread
from activeseg.errors import ConfigError
from activeseg.records import QueryItem

NONE: np.ndarray = np.empty((0, 4), np.float32)


def random_features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def arms(items: list[QueryItem]) -> tuple[list[int], list[int]]:
    """Images chosen, in their order, and images drawn."""
    return tuple([item.image_id for item in items if item.arm == arm] for arm in ("chosen", "control"))  # type: ignore[return-value]


def test_chosen_images_are_each_the_farthest_from_all_before() -> None:
    features = random_features(40)
    items = select_spread(dict.fromkeys(range(40)), range(40), features, 12, validation=4, seed=3)
    chosen, control = arms(items)
    assert (len(chosen), len(control)) == (8, 4)
    taken = list(control)
    for image in chosen:
        far = [min(np.linalg.norm(features[one] - features[other]) for other in taken) for one in range(40)]
        assert far[image] == pytest.approx(max(far))
        taken.append(image)
    assert sorted(item.shown_order for item in items) == list(range(12))
    assert {item.rank for item in items} == {None}
    assert all(0 < len(item.reason) <= 200 for item in items)


def test_every_image_has_the_same_chance_to_validate() -> None:
    counts = np.zeros(10)
    for seed in range(2000):
        counts[arms(select_spread(dict.fromkeys(range(10)), [], NONE, 5, validation=2, seed=seed))[1]] += 1
    assert np.abs(counts / 2000 - 0.2).max() < 0.04  # four standard deviations


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_chosen_from_a_clip_that_validates(seed: int) -> None:
    groups: dict[int, str | None] = {image: f"clip {image // 10}" for image in range(40)}
    chosen, control = arms(select_spread(groups, range(40), random_features(40), 20, validation=6, seed=seed))
    assert (len(chosen), len(control)) == (14, 6)
    assert len({groups[image] for image in control}) == 1
    assert not {groups[image] for image in chosen} & {groups[image] for image in control}


def test_a_clip_that_is_most_of_the_pool_does_not_validate() -> None:
    groups: dict[int, str | None] = {image: "small" if image < 6 else "large" for image in range(40)}
    for seed in range(20):
        _, control = arms(select_spread(groups, range(40), random_features(40), 20, validation=6, seed=seed))
        assert {groups[image] for image in control} == {"small"}


def test_a_single_clip_has_nothing_to_validate_with() -> None:
    chosen, control = arms(
        select_spread(dict.fromkeys(range(9), "clip"), range(9), random_features(9), 5, validation=2, seed=0)
    )
    assert (len(chosen), control) == (5, [])


def test_the_same_seed_gives_the_same_query_whatever_order_images_come_in() -> None:
    features, groups = random_features(30), dict.fromkeys(range(30))
    backwards = dict.fromkeys(reversed(range(30)))
    one = select_spread(groups, range(30), features, 10, validation=3, seed=5)
    assert one == select_spread(backwards, list(reversed(range(30))), features[::-1], 10, validation=3, seed=5)
    assert one != select_spread(groups, range(30), features, 10, validation=3, seed=6)


def test_equal_images_and_images_without_an_embedding_fill_what_is_left() -> None:
    same = np.ones((6, 4), np.float32)
    items = select_spread(dict.fromkeys(range(12)), range(6), same, 10, validation=2, seed=0)
    assert len({item.image_id for item in items}) == 10
    assert any("no image apart" in item.reason for item in items)
    assert len(select_spread(dict.fromkeys(range(4)), [], NONE, 9, validation=2, seed=0)) == 4
    assert len(select_spread({7: None}, [7], same[:1], 3, validation=2, seed=0)) == 1


def test_without_validation_all_images_are_chosen() -> None:
    chosen, control = arms(select_spread(dict.fromkeys(range(9)), range(9), random_features(9), 4, validation=0, seed=0))
    assert (len(chosen), control) == (4, [])


@pytest.mark.parametrize(("size", "validation"), [(0, 1), (1, -1)])
def test_impossible_sizes_are_refused(size: int, validation: int) -> None:
    with pytest.raises(ConfigError, match="size"):
        select_spread({1: None}, [], NONE, size, validation=validation, seed=0)
