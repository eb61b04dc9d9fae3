"""Curves against brute force: figures recomputed with loops, draws made one image at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest

from activeseg.core.curves import area, compare_curves, curve, labels_saved, labels_to_reach, saving
from activeseg.errors import ConfigError

LABELS = (10, 20, 50)


def drawn_counts(seeds: int, images: int, classes: int, *, seed: int, truth_seed: int = 0, lift: int = 0) -> np.ndarray:
    """(S, R, N, 3, C): the truth depends on `truth_seed` alone, hits on `seed` and grow by `lift`."""
    truth = np.random.default_rng(truth_seed).integers(20, 200, (images, classes))
    numbers = np.random.default_rng(seed)
    counts = np.zeros((seeds, len(LABELS), images, 3, classes), np.int64)
    counts[..., 1, :] = truth
    share = np.clip(numbers.uniform(0.2, 0.5, counts[..., 0, :].shape) + lift / 100, 0, 1)
    counts[..., 0, :] = (share * truth).astype(np.int64)
    counts[..., 2, :] = truth
    return counts


def mean_iou_by_hand(counts: list[np.ndarray], channels: range | list[int]) -> float:
    """Of images' counts (3, C) each."""
    total = [[sum(int(image[kind, channel]) for image in counts) for kind in range(3)] for channel in channels]
    ious = [hits / (truth + predicted - hits) for hits, truth, predicted in total if truth]
    return sum(ious) / len(ious) if ious else float("nan")


@pytest.mark.parametrize("channels", [None, [1], [0, 2]])
def test_a_curve_is_the_miou_of_one_confusion_matrix_over_all_images(channels: list[int] | None) -> None:
    counts = drawn_counts(2, 5, 3, seed=1)
    counts[..., :, 2] = 0  # nowhere in the truth
    found = curve(counts, channels)
    for seed in range(2):
        for number in range(len(LABELS)):
            by_hand = mean_iou_by_hand(list(counts[seed, number]), range(3) if channels is None else channels)
            assert found[seed, number] == pytest.approx(by_hand)


def test_the_area_is_the_mean_height_over_the_labels() -> None:
    values = np.array([0.2, 0.4, 0.5])
    steps = np.linspace(10, 50, 40_001)
    heights = np.interp(steps, LABELS, values)
    assert area(LABELS, values) == pytest.approx(heights.mean(), abs=1e-5)
    assert area(LABELS, np.stack([values, values + 0.1])) == pytest.approx([heights.mean(), heights.mean() + 0.1], abs=1e-5)
    assert area((7,), np.array([0.3])) == 0.3
    assert np.isnan(area(LABELS, np.array([0.2, np.nan, 0.5])))


@pytest.mark.parametrize(
    ("values", "goal", "labels"),
    [
        ((0.2, 0.4, 0.5), 0.3, 15.0),
        ((0.2, 0.4, 0.5), 0.45, 35.0),
        ((0.2, 0.4, 0.5), 0.4, 20.0),
        ((0.2, 0.4, 0.5), 0.1, 10.0),
        ((0.2, 0.4, 0.5), 0.51, None),
        ((0.2, 0.5, 0.3), 0.4, 10 + 10 * 2 / 3),  # first reached, though it falls again
        ((0.3, 0.3, 0.3), 0.3, 10.0),
        ((float("nan"), 0.4, 0.5), 0.3, 20.0),
    ],
)
def test_labels_to_a_goal_lie_where_the_curve_first_crosses_it(values: tuple[float, ...], goal: float, labels: float) -> None:
    assert labels_to_reach(LABELS, np.array(values), goal) == (None if labels is None else pytest.approx(labels))


def test_labels_saved_are_counted_at_the_highest_miou_both_reach() -> None:
    slow, fast = np.array([0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.5])
    assert labels_saved(LABELS, fast, slow) == pytest.approx(1 - 20 / 50)
    assert labels_saved(LABELS, slow, fast) == pytest.approx(1 - 50 / 20)
    assert labels_saved(LABELS, slow, slow) == 0
    assert labels_saved(LABELS, slow, np.array([0.2, np.nan, 0.4])) is None
    assert saving(20.0, 50.0) == pytest.approx(0.6)
    assert saving(None, 50.0) is None
    assert saving(20.0, None) is None


def by_hand(own: np.ndarray, other: np.ndarray, channels: list[int] | None, samples: int) -> list[float]:
    """Differences of areas, sorted: seeds and images drawn one by one."""
    dice, found = random.Random(5), []
    classes = range(own.shape[-1]) if channels is None else channels
    for _ in range(samples):
        seeds = [dice.randrange(own.shape[0]) for _ in range(own.shape[0])]
        images = [dice.randrange(own.shape[2]) for _ in range(own.shape[2])]
        areas = []
        for counts in (own, other):
            means = [
                sum(mean_iou_by_hand([counts[seed, number, image] for image in images], classes) for seed in seeds) / len(seeds)
                for number in range(len(LABELS))
            ]
            areas.append(sum((means[i] + means[i + 1]) / 2 * (LABELS[i + 1] - LABELS[i]) for i in range(2)) / 40)
        found.append(areas[0] - areas[1])
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [None, [0, 1]])
def test_the_interval_is_that_of_seeds_and_images_drawn_one_by_one(channels: list[int] | None) -> None:
    own, other = drawn_counts(3, 6, 3, seed=1, lift=4), drawn_counts(3, 6, 3, seed=2)
    found = compare_curves(LABELS, own, other, classes=channels, samples=4000, confidence=0.8)
    drawn = by_hand(own, other, channels, 800)
    whole = [area(LABELS, curve(side, channels).mean(axis=0)) for side in (own, other)]
    width = drawn[-1] - drawn[0]
    assert found.area.difference == pytest.approx(whole[0] - whole[1])
    assert found.area.low == pytest.approx(drawn[80], abs=0.06 * width)
    assert found.area.high == pytest.approx(drawn[719], abs=0.06 * width)
    assert len(found.rounds) == len(LABELS)


def test_a_curve_against_itself_differs_by_nothing_and_a_better_one_by_more_than_nothing() -> None:
    counts = drawn_counts(3, 6, 3, seed=1)
    same = compare_curves(LABELS, counts, counts)
    assert (same.area.difference, same.area.low, same.area.high) == (0, 0, 0)
    better = compare_curves(LABELS, drawn_counts(3, 6, 3, seed=3, lift=40), counts)
    assert 0 < better.area.low < better.area.difference < better.area.high
    assert all(item.low > 0 for item in better.rounds)
    assert better.saved.difference > 0
    assert better.saved.low >= 0


def test_many_draws_in_blocks_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = drawn_counts(2, 4, 3, seed=1), drawn_counts(2, 4, 3, seed=2)
    whole = compare_curves(LABELS, own, other, samples=50)
    monkeypatch.setattr("activeseg.core.curves._BLOCK_BYTES", 1)
    assert compare_curves(LABELS, own, other, samples=50) == whole


def test_curves_of_other_images_or_rounds_cannot_be_compared() -> None:
    counts = drawn_counts(2, 4, 3, seed=1)
    with pytest.raises(ConfigError, match="same images"):
        compare_curves(LABELS, counts, drawn_counts(2, 4, 3, seed=1, truth_seed=9))
    with pytest.raises(ConfigError, match="R = 2"):
        compare_curves(LABELS[:2], counts, counts)
