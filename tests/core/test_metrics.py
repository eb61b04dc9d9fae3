from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

from activeseg.core.labels import LabelSet
from activeseg.core.metrics import ConfusionMatrix, paired_bootstrap
from activeseg.errors import ConfigError, MaskError

Array = npt.NDArray[Any]


def random_masks(seed: int, classes: int = 6, images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Truth in patches of very different frequency, and a prediction that is right two times in three."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 0.5), size=images)
    truth = np.stack([rng.choice(classes, size=(20, 24), p=share) for share in shares])
    noise = rng.integers(0, classes, truth.shape)
    prediction = np.where(rng.random(truth.shape) < 0.67, truth, noise)
    return torch.from_numpy(prediction), torch.from_numpy(truth)


def naive(prediction: Array, truth: Array, classes: int, ignored: int | None) -> dict[str, list[float]]:
    pairs = [(int(p), int(t)) for p, t in zip(prediction.flat, truth.flat, strict=True) if t not in (ignored, 255)]
    iou, dice = [], []
    for c in range(classes):
        both = sum(p == c and t == c for p, t in pairs)
        either = sum(p == c or t == c for p, t in pairs)
        present = any(t == c for _, t in pairs)
        iou.append(both / either if present else math.nan)
        dice.append(2 * both / (either + both) if present else math.nan)
    return {
        "iou": iou,
        "dice": dice,
        "mean_iou": [float(np.nanmean(iou))],
        "pixel_accuracy": [sum(p == t for p, t in pairs) / len(pairs)],
    }


@pytest.mark.parametrize("ignored", [None, 2, 255])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_a_naive_loop(seed: int, ignored: int | None) -> None:
    prediction, truth = random_masks(seed)
    truth[truth == 4] = 3  # class 4 is predicted but never true
    truth[:, :2] = 255
    matrix = ConfusionMatrix(6, ignored)
    matrix.update(prediction, truth)
    metrics = matrix.compute()
    for name, expected in naive(prediction.numpy(), truth.numpy(), 6, ignored).items():
        np.testing.assert_allclose(np.atleast_1d(getattr(metrics, name)), expected, err_msg=name)
    assert all(math.isnan(figures[4]) for figures in (metrics.iou, metrics.dice, metrics.accuracy))


@pytest.mark.parametrize("ignored", [None, 1])
def test_metrics_equal_torchmetrics_over_the_whole_dataset(ignored: int | None) -> None:
    """By its classification metrics, which keep one confusion matrix; its segmentation MeanIoU averages samples."""
    predictions, truths = random_masks(7)
    ours = ConfusionMatrix(6, ignored)
    theirs = {
        "iou": MulticlassJaccardIndex(6, average="none", ignore_index=ignored),
        "dice": MulticlassF1Score(6, average="none", ignore_index=ignored),
        "pixel_accuracy": MulticlassAccuracy(6, average="micro", ignore_index=ignored),
        "accuracy": MulticlassAccuracy(6, average="none", ignore_index=ignored),
    }
    for prediction, truth in zip(predictions, truths, strict=True):
        ours.update(prediction, truth)
        for metric in theirs.values():
            metric.update(prediction[None], truth[None])
    metrics = ours.compute()
    counted = [c for c in range(6) if c != ignored]
    for name, metric in theirs.items():
        expected, came = np.atleast_1d(metric.compute().numpy()), np.atleast_1d(getattr(metrics, name))
        chosen = counted if expected.size > 1 else [0]
        np.testing.assert_allclose(came[chosen], expected[chosen], rtol=1e-6, err_msg=name)
    assert metrics.mean_iou == pytest.approx(float(theirs["iou"].compute()[counted].mean()), rel=1e-6)


def test_mean_iou_is_of_the_dataset_and_not_the_mean_over_images() -> None:
    large, small = torch.zeros(10, 10, dtype=torch.int64), torch.tensor([[0, 1]])
    matrix = ConfusionMatrix(2)
    matrix.update(large, large)
    matrix.update(torch.tensor([[1, 0]]), small)
    # Over images: (1 + 0) / 2 of whatever classes; over the dataset: class 0 has 100 / 102, class 1 has 0.
    assert matrix.compute().mean_iou == pytest.approx((100 / 102 + 0) / 2)


def test_rows_of_the_matrix_are_truth() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[2, 2, 1]]), torch.tensor([[0, 0, 1]]))
    assert matrix.matrix.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert matrix.matrix.dtype == torch.int64
    metrics = matrix.compute()
    assert metrics.truth_pixels == (2, 1, 0)
    assert metrics.mean_iou == pytest.approx(0.5)  # class 2 is only predicted: no part of the mean
    assert metrics.pixel_accuracy == pytest.approx(1 / 3)


def test_uint8_arrays_count_like_int64_tensors() -> None:
    prediction, truth = random_masks(3, classes=40)
    wide, narrow = ConfusionMatrix(40, 255), ConfusionMatrix(40, 255)
    wide.update(prediction, truth)
    narrow.update(prediction.numpy().astype(np.uint8), truth.numpy().astype(np.uint8))
    assert torch.equal(wide.matrix, narrow.matrix)


@pytest.mark.parametrize(("dtype", "ignored"), [(np.uint8, 256), (np.uint8, -1), (np.int8, -1)])
def test_an_ignored_value_that_the_dtype_cannot_hold_ignores_nothing(dtype: type, ignored: int) -> None:
    matrix = ConfusionMatrix(3, ignored)
    matrix.update(torch.from_numpy(np.array([0, 1, 2], dtype)), torch.from_numpy(np.array([0, 1, 2], dtype)))
    assert matrix.compute().truth_pixels == (1, 1, 1)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_counted_without_a_warning() -> None:
    mask = np.zeros((2, 2), np.uint8)
    mask.setflags(write=False)
    matrix = ConfusionMatrix(2)
    matrix.update(mask, mask)
    stack_of_one = matrix.matrix.numpy()[None]
    stack_of_one.setflags(write=False)
    assert paired_bootstrap(stack_of_one, stack_of_one, seed=0).difference == 0


def test_sum_of_matrices_counts_both_and_changes_neither() -> None:
    prediction, truth = random_masks(4)
    parts = [ConfusionMatrix(6, 0), ConfusionMatrix(6, 0)]
    parts[0].update(prediction[:2], truth[:2])
    parts[1].update(prediction[2:], truth[2:])
    before = parts[0].matrix.clone()
    whole = ConfusionMatrix(6, 0)
    whole.update(prediction, truth)
    assert torch.equal((parts[0] + parts[1]).matrix, whole.matrix)
    assert torch.equal(parts[0].matrix, before)
    with pytest.raises(ConfigError, match="cannot add"):
        parts[0] + ConfusionMatrix(6, 1)


def test_nothing_counted_gives_nan_not_zero() -> None:
    matrix = ConfusionMatrix(3, 0)
    matrix.update(torch.tensor([1, 2]), torch.tensor([0, 255]))
    metrics = matrix.compute()
    assert np.isnan([metrics.mean_iou, metrics.pixel_accuracy]).all()
    assert metrics.truth_pixels == (0, 0, 0)


@pytest.mark.parametrize(
    ("prediction", "truth", "problem"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), "whole numbers"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64), "one shape"),
        (torch.tensor([0]), torch.tensor([7]), r"truth: .*got \[7\]"),
        (torch.tensor([3]), torch.tensor([0]), r"prediction: .*got \[3\]"),
        (torch.tensor([-1]), torch.tensor([0]), "prediction"),
    ],
)
def test_masks_that_cannot_be_counted_are_refused_and_count_nothing(
    prediction: torch.Tensor, truth: torch.Tensor, problem: str
) -> None:
    matrix = ConfusionMatrix(3, 255)
    with pytest.raises(MaskError, match=problem):
        matrix.update(prediction, truth)
    assert not matrix.matrix.any()


def test_class_records_carry_names_and_none_where_absent() -> None:
    label_set = LabelSet(("void", "sky", "road"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), ignore_index=0)
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([1, 0]), torch.tensor([1, 1]))
    sky, road = matrix.compute().by_class(label_set)
    assert (sky.class_index, sky.name, sky.iou, sky.truth_pixels) == (1, "sky", None, 0)
    assert (road.class_index, road.name, road.iou, road.dice, road.accuracy) == (2, "road", 0.5, 2 / 3, 0.5)
    with pytest.raises(ConfigError, match="channels"):
        ConfusionMatrix(3).compute().by_class(label_set)


def stack(predictions: torch.Tensor, truths: torch.Tensor, classes: int = 6) -> Array:
    matrices = []
    for prediction, truth in zip(predictions, truths, strict=True):
        matrix = ConfusionMatrix(classes)
        matrix.update(prediction, truth)
        matrices.append(matrix.matrix.numpy())
    return np.stack(matrices)


def spoil(truths: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(truths.shape, generator=generator) < share
    return torch.where(wrong, (truths + 1) % 6, truths)


def test_bootstrap_of_equal_models_is_exactly_zero() -> None:
    prediction, truth = random_masks(1, images=8)
    result = paired_bootstrap(stack(prediction, truth), stack(prediction, truth), seed=0)
    assert (result.difference, result.low, result.high) == (0, 0, 0)


def test_bootstrap_sees_a_better_and_a_worse_challenger() -> None:
    _, truth = random_masks(2, images=20)
    good, bad = stack(spoil(truth, 0.1, 1), truth), stack(spoil(truth, 0.4, 2), truth)
    better, worse = paired_bootstrap(bad, good, seed=3), paired_bootstrap(good, bad, seed=3)
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
    result = paired_bootstrap(stack(prediction, truth), stack(other, truth), seed=0)
    assert result.difference == pytest.approx(whole[1] - whole[0])


def test_bootstrap_equals_resampling_by_hand() -> None:
    """The same interval, within sampling error, from drawing masks and counting them again."""
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
            values.append(matrix.compute().mean_iou)
        differences.append(values[1] - values[0])
    low, high = np.quantile(differences, [0.05, 0.95])
    result = paired_bootstrap(stack(prediction, truth), stack(other, truth), samples=4000, confidence=0.9, seed=1)
    tolerance = 0.15 * (high - low)
    assert result.low == pytest.approx(low, abs=tolerance)
    assert result.high == pytest.approx(high, abs=tolerance)


def test_bootstrap_repeats_for_a_seed_and_widens_with_confidence() -> None:
    prediction, truth = random_masks(8, images=12)
    old, new = stack(prediction, truth), stack(spoil(truth, 0.3, 5), truth)
    assert paired_bootstrap(old, new, seed=4) == paired_bootstrap(old, new, seed=4)
    assert paired_bootstrap(old, new, seed=4) != paired_bootstrap(old, new, seed=5)
    narrow = paired_bootstrap(old, new, confidence=0.5, seed=4)
    wide = paired_bootstrap(torch.from_numpy(old), torch.from_numpy(new), confidence=0.99, seed=4)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_of_one_image_has_no_width() -> None:
    prediction, truth = random_masks(9, images=1)
    result = paired_bootstrap(stack(prediction, truth), stack(truth, truth), seed=0)
    assert result.low == pytest.approx(result.difference) == pytest.approx(result.high)


def test_bootstrap_survives_images_without_labels() -> None:
    _, truth = random_masks(1, images=2)
    labelled = stack(spoil(truth, 0.2, 1), truth)
    padded = np.concatenate([labelled[:1], np.zeros_like(labelled)])
    result = paired_bootstrap(padded, padded, seed=0)
    assert (result.low, result.high) == (0, 0)


@pytest.mark.parametrize(
    ("old", "new", "options", "problem"),
    [
        (np.ones((2, 3, 3), int), np.ones((3, 3, 3), int), {}, "one shape"),
        (np.ones((0, 3, 3), int), np.ones((0, 3, 3), int), {}, "N >= 1"),
        (np.ones((2, 3, 3), int), 2 * np.ones((2, 3, 3), int), {}, "same images"),
        (np.zeros((2, 3, 3), int), np.zeros((2, 3, 3), int), {}, "no counted pixel"),
        (np.ones((2, 3, 3), int), np.ones((2, 3, 3), int), {"samples": 0}, "samples"),
        (np.ones((2, 3, 3), int), np.ones((2, 3, 3), int), {"confidence": 1.0}, "confidence"),
    ],
)
def test_bootstrap_refuses_what_does_not_pair(old: Array, new: Array, options: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        paired_bootstrap(old, new, seed=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_classes", [0, -1, 256])
def test_impossible_class_counts_are_refused(num_classes: int) -> None:
    with pytest.raises(ConfigError, match="num_classes"):
        ConfusionMatrix(num_classes)
