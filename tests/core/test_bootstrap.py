from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from activeseg.core.bootstrap import Interval, paired_bootstrap
from activeseg.core.metrics import ConfusionMatrix
from activeseg.errors import ConfigError

Array = npt.NDArray[Any]


def random_masks(seed: int, classes: int = 6, images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction that is right two times in three, and truth in very different shares of classes."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 0.5), size=images)
    truth = np.stack([rng.choice(classes, size=(20, 24), p=share) for share in shares])
    prediction = np.where(rng.random(truth.shape) < 0.67, truth, rng.integers(0, classes, truth.shape))
    return torch.from_numpy(prediction), torch.from_numpy(truth)


def miou_interval(old: Any, new: Any, **options: Any) -> Interval:
    return paired_bootstrap(old, new, **options).mean_iou


def stack(predictions: torch.Tensor, truths: torch.Tensor, classes: int = 6) -> Array:
    matrices = []
    for prediction, truth in zip(predictions, truths, strict=True):
        matrix = ConfusionMatrix(classes)
        matrix.update(prediction, truth)
        matrices.append(matrix.counts)
    return np.stack(matrices)


def spoil(truths: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(truths.shape, generator=generator) < share
    return torch.where(wrong, (truths + 1) % 6, truths)


def test_bootstrap_of_equal_models_is_exactly_zero() -> None:
    prediction, truth = random_masks(1, images=8)
    result = miou_interval(stack(prediction, truth), stack(prediction, truth), seed=0)
    assert (result.difference, result.low, result.high) == (0, 0, 0)


def test_bootstrap_sees_a_better_and_a_worse_challenger() -> None:
    _, truth = random_masks(2, images=20)
    good, bad = stack(spoil(truth, 0.1, 1), truth), stack(spoil(truth, 0.4, 2), truth)
    better, worse = miou_interval(bad, good, seed=3), miou_interval(good, bad, seed=3)
    assert 0 < better.low < better.difference < better.high
    assert worse.high < 0
    assert worse.difference == pytest.approx(-better.difference)
    assert [worse.low, worse.high] == pytest.approx([-better.high, -better.low])


def test_bootstrap_difference_is_that_of_the_dataset_metrics() -> None:
    prediction, truth = random_masks(5)
    other = spoil(truth, 0.2, 9)
    whole = []
    for masks in (prediction, other):
        matrix = ConfusionMatrix(6)
        matrix.update(masks, truth)
        whole.append(matrix.compute().mean_iou)
    result = miou_interval(stack(prediction, truth), stack(other, truth), seed=0)
    assert result.difference == pytest.approx(whole[1] - whole[0])


@pytest.mark.slow
def test_bootstrap_equals_resampling_by_hand() -> None:
    """The same intervals, within sampling error, from drawing masks and counting them again."""
    prediction, truth = random_masks(6, images=6)
    other = spoil(truth, 0.3, 4)
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(400):
        drawn = torch.from_numpy(rng.integers(0, 6, 6))
        values = []
        for masks in (prediction, other):
            matrix = ConfusionMatrix(6)
            matrix.update(masks[drawn], truth[drawn])
            metrics = matrix.compute()
            values.append([metrics.mean_iou, *metrics.iou])
        differences.append(np.subtract(values[1], values[0]))
    low, high = np.nanquantile(differences, [0.05, 0.95], axis=0)
    result = paired_bootstrap(stack(prediction, truth), stack(other, truth), samples=4000, confidence=0.9, seed=1)
    assert len(result.iou) == 6
    for interval, least, most in zip([result.mean_iou, *result.iou], low, high, strict=True):
        tolerance = 0.15 * (most - least)
        assert interval.low == pytest.approx(least, abs=tolerance)
        assert interval.high == pytest.approx(most, abs=tolerance)


def test_a_class_has_the_difference_of_its_iou_or_none() -> None:
    prediction, truth = random_masks(2, images=8)
    truth[truth == 5] = 4
    other = spoil(truth, 0.3, 6)
    old, new = stack(prediction, truth), stack(other, truth)
    result = paired_bootstrap(old, new, seed=0)
    for c, interval in enumerate(result.iou[:5]):
        hits, true, predicted = new[:, :, c].sum(0) / 1.0
        hits_before, true_before, predicted_before = old[:, :, c].sum(0) / 1.0
        expected = hits / (true + predicted - hits) - hits_before / (true_before + predicted_before - hits_before)
        assert interval.difference == pytest.approx(expected)
        assert interval.low <= interval.difference <= interval.high
    assert np.isnan([result.iou[5].difference, result.iou[5].low, result.iou[5].high]).all()
    assert not math.isnan(result.mean_iou.low)


def test_bootstrap_repeats_for_a_seed_and_widens_with_confidence() -> None:
    prediction, truth = random_masks(8, images=12)
    old, new = stack(prediction, truth), stack(spoil(truth, 0.3, 5), truth)
    assert paired_bootstrap(old, new, seed=4) == paired_bootstrap(old, new, seed=4)
    assert paired_bootstrap(old, new, seed=4) != paired_bootstrap(old, new, seed=5)
    narrow = miou_interval(old, new, confidence=0.5, seed=4)
    wide = miou_interval(torch.from_numpy(old), torch.from_numpy(new), confidence=0.99, seed=4)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_of_one_image_has_no_width() -> None:
    prediction, truth = random_masks(9, images=1)
    result = miou_interval(stack(prediction, truth), stack(truth, truth), seed=0)
    assert result.low == pytest.approx(result.difference) == pytest.approx(result.high)


def test_bootstrap_survives_images_without_labels() -> None:
    _, truth = random_masks(1, images=2)
    labelled = stack(spoil(truth, 0.2, 1), truth)
    padded = np.concatenate([labelled[:1], np.zeros_like(labelled)])
    result = miou_interval(padded, padded, seed=0)
    assert (result.low, result.high) == (0, 0)


@pytest.mark.parametrize(
    ("old", "new", "options", "problem"),
    [
        (np.ones((2, 3, 4), int), np.ones((3, 3, 4), int), {}, "one shape"),
        (np.ones((0, 3, 4), int), np.ones((0, 3, 4), int), {}, "N >= 1"),
        (np.ones((2, 4, 4), int), np.ones((2, 4, 4), int), {}, r"\(N, 3, C\)"),
        (np.ones((2, 3, 4)), np.ones((2, 3, 4)), {}, "whole numbers"),
        (np.ones((2, 3, 4), int), 2 * np.ones((2, 3, 4), int), {}, "same images"),
        (np.zeros((2, 3, 4), int), np.zeros((2, 3, 4), int), {}, "no counted pixel"),
        (np.ones((2, 3, 4), int), np.ones((2, 3, 4), int), {"samples": 0}, "samples"),
        (np.ones((2, 3, 4), int), np.ones((2, 3, 4), int), {"confidence": 1.0}, "confidence"),
    ],
)
def test_bootstrap_refuses_what_does_not_pair(old: Array, new: Array, options: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        paired_bootstrap(old, new, seed=0, **options)  # type: ignore[arg-type]
