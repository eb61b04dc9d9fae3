from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from activeseg.core.labels import LabelSet
from activeseg.core.metrics import ConfusionMatrix, OverlapCounts, class_iou, mean_present, smoothed
from activeseg.errors import ConfigError, MaskError
from tests.allocations import Allocations

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
        "mean_dice": [float(np.nanmean(dice))],
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


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [None, 1])
def test_metrics_equal_torchmetrics_over_the_whole_dataset(ignored: int | None) -> None:
    from torchmetrics import classification  # seconds to import

    """By its classification metrics, which keep one confusion matrix; its segmentation MeanIoU averages samples."""
    predictions, truths = random_masks(7)
    ours = ConfusionMatrix(6, ignored)
    theirs = {
        "iou": classification.MulticlassJaccardIndex(6, average="none", ignore_index=ignored),
        "dice": classification.MulticlassF1Score(6, average="none", ignore_index=ignored),
        "pixel_accuracy": classification.MulticlassAccuracy(6, average="micro", ignore_index=ignored),
        "accuracy": classification.MulticlassAccuracy(6, average="none", ignore_index=ignored),
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


@pytest.mark.filterwarnings("error::UserWarning")
def test_read_only_arrays_are_counted_without_a_warning() -> None:
    mask = np.zeros((2, 2), np.uint8)
    mask.setflags(write=False)
    matrix = ConfusionMatrix(2)
    matrix.update(mask, mask)
    assert matrix.compute().truth_pixels == (4, 0)


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
    assert np.isnan([metrics.mean_iou, metrics.mean_dice, metrics.pixel_accuracy]).all()
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


@pytest.mark.parametrize("num_classes", [0, -1, 256])
def test_impossible_class_counts_are_refused(num_classes: int) -> None:
    for kind in (ConfusionMatrix, OverlapCounts):
        with pytest.raises(ConfigError, match="num_classes"):
            kind(num_classes)


def test_counts_are_the_sums_of_the_matrix() -> None:
    prediction, truth = random_masks(11)
    matrix = ConfusionMatrix(6)
    matrix.update(prediction, truth)
    seen, true = prediction.numpy(), truth.numpy()
    for c, (hits, in_truth, predicted) in enumerate(matrix.counts.T.tolist()):
        assert hits == ((seen == c) & (true == c)).sum()
        assert (in_truth, predicted) == ((true == c).sum(), (seen == c).sum())
    assert matrix.counts.dtype == np.int64
    metrics = matrix.compute()
    np.testing.assert_array_equal(class_iou(matrix.counts), metrics.iou)
    assert mean_present(class_iou(matrix.counts)) == metrics.mean_iou


def overlapping(seed: int, classes: int = 5, images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Planes that overlap, right nine times in ten, with a strip that is not counted: (N, C, H, W) bool and uint8."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((images, classes, 14, 17)) < rng.random((1, classes, 1, 1))).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.9, truth == 1, truth == 0)
    truth[:, :, :2] = 255
    return torch.from_numpy(prediction), torch.from_numpy(truth)


@pytest.mark.parametrize("seed", range(3))
def test_overlapping_classes_equal_a_naive_loop(seed: int) -> None:
    prediction, truth = overlapping(seed)
    truth[:, 3][truth[:, 3] == 1] = 0  # predicted but never true
    counts = OverlapCounts(5)
    for one, true in zip(prediction, truth, strict=True):
        counts.update(one, true)
    metrics = counts.compute()
    right = total = 0
    for c in range(5):
        pairs = [(p, t) for p, t in zip(prediction[:, c].flatten().tolist(), truth[:, c].flatten().tolist(), strict=True)]
        pairs = [(p, t) for p, t in pairs if t != 255]
        both, either = sum(p and t == 1 for p, t in pairs), sum(p or t == 1 for p, t in pairs)
        true = sum(t == 1 for _, t in pairs)
        right, total = right + sum(p == (t == 1) for p, t in pairs), total + len(pairs)
        assert metrics.truth_pixels[c] == true
        expected = [both / either, 2 * both / (both + either), both / true] if true else [math.nan] * 3
        np.testing.assert_allclose([metrics.iou[c], metrics.dice[c], metrics.accuracy[c]], expected)
    assert metrics.mean_iou == pytest.approx(np.nanmean(metrics.iou))
    assert math.isnan(metrics.iou[3])
    assert metrics.pixel_accuracy == pytest.approx(right / total)
    assert counts.decisions == total


@pytest.mark.slow
def test_overlapping_classes_equal_torchmetrics() -> None:
    from torchmetrics import classification  # seconds to import

    prediction, truth = overlapping(9)
    counts = OverlapCounts(5)
    counts.update(prediction, truth)
    metrics = counts.compute()
    theirs = {
        "iou": classification.MultilabelJaccardIndex(5, average="none", ignore_index=255),
        "dice": classification.MultilabelF1Score(5, average="none", ignore_index=255),
        "accuracy": classification.MultilabelRecall(5, average="none", ignore_index=255),
        "pixel_accuracy": classification.MultilabelAccuracy(5, average="micro", ignore_index=255),
    }
    for name, metric in theirs.items():
        metric.update(prediction.long(), truth.long())
        np.testing.assert_allclose(getattr(metrics, name), metric.compute().numpy(), rtol=1e-6, err_msg=name)


def test_sum_of_overlap_counts_is_of_both_and_changes_neither() -> None:
    prediction, truth = overlapping(4)
    parts = [OverlapCounts(5), OverlapCounts(5)]
    parts[0].update(prediction[:1], truth[:1])
    parts[1].update(prediction[1:], truth[1:])
    before = parts[0].counts.copy()
    whole = OverlapCounts(5)
    whole.update(prediction.numpy(), truth.numpy())
    total = parts[0] + parts[1]
    assert np.array_equal(total.counts, whole.counts)
    assert (total.decisions, total.compute()) == (whole.decisions, whole.compute())
    assert np.array_equal(parts[0].counts, before)
    with pytest.raises(ConfigError, match="cannot add"):
        parts[0] + OverlapCounts(4)


@pytest.mark.parametrize(
    ("prediction", "truth", "problem"),
    [
        (torch.zeros(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.uint8), "expected bool"),
        (torch.zeros(2, 3, 3, dtype=torch.bool), torch.zeros(2, 3, 3), "whole numbers"),
        (torch.zeros(2, 3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.uint8), "one shape"),
        (torch.zeros(3, 3, 3, dtype=torch.bool), torch.zeros(3, 3, 3, dtype=torch.uint8), "one shape"),
        (torch.zeros(2, 3, 3, dtype=torch.bool), torch.full((2, 3, 3), 7, dtype=torch.uint8), "got up to 7"),
    ],
)
def test_planes_that_cannot_be_counted_are_refused_and_count_nothing(
    prediction: torch.Tensor, truth: torch.Tensor, problem: str
) -> None:
    counts = OverlapCounts(2)
    with pytest.raises(MaskError, match=problem):
        counts.update(prediction, truth)
    assert not counts.counts.any()
    assert math.isnan(counts.compute().pixel_accuracy)


def test_classes_that_exclude_each_other_count_the_same_as_planes() -> None:
    prediction, truth = random_masks(12)
    matrix, counts = ConfusionMatrix(6), OverlapCounts(6)
    matrix.update(prediction, truth)
    planes = torch.nn.functional.one_hot(prediction, 6).movedim(-1, 1).bool()
    counts.update(planes, torch.nn.functional.one_hot(truth, 6).movedim(-1, 1))
    assert np.array_equal(matrix.counts, counts.counts)
    assert matrix.compute().iou == counts.compute().iou


masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 3))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(masks, st.randoms(use_true_random=False))
def test_metrics_keep_their_bounds_and_do_not_depend_on_order(truth: Array, chance: Any) -> None:
    rng = np.random.default_rng(chance.randrange(2**32))
    prediction = rng.integers(0, 4, truth.shape, dtype=np.uint8)
    matrix, shuffled, perfect = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    matrix.update(prediction, truth)
    order = rng.permutation(truth.size)
    shuffled.update(prediction.ravel()[order], truth.ravel()[order])
    perfect.update(truth, truth)
    metrics = matrix.compute()
    assert torch.equal(shuffled.matrix, matrix.matrix)
    assert perfect.compute().mean_iou == perfect.compute().pixel_accuracy == 1
    for iou, dice, accuracy in zip(metrics.iou, metrics.dice, metrics.accuracy, strict=True):
        assert math.isnan(iou) or 0 <= iou <= dice <= 1
        assert math.isnan(iou) or dice == pytest.approx(2 * iou / (1 + iou))
        assert math.isnan(iou) or iou <= accuracy <= 1
    assert sum(metrics.truth_pixels) == truth.size
    hits, true, predicted = matrix.counts
    assert (hits <= np.minimum(true, predicted)).all()
    assert sum(true) == sum(predicted) == truth.size


def test_smoothed_is_the_formula_of_the_source_documents_for_each_image() -> None:
    predictions, truths = random_masks(3, images=4)
    s, stacked, iou, dice = 1e-5, [], np.zeros((4, 6)), np.zeros((4, 6))
    for n, (prediction, truth) in enumerate(zip(predictions.numpy(), truths.numpy(), strict=True)):
        matrix = ConfusionMatrix(6)
        matrix.update(prediction, truth)
        stacked.append(matrix.counts)
        for c in range(6):
            intersection = ((prediction == c) * (truth == c)).sum()
            areas = (prediction == c).sum() + (truth == c).sum()
            iou[n, c] = (intersection + s) / (areas - intersection + s)
            dice[n, c] = 2 * ((intersection + s) / (areas + s))
    result = smoothed(np.stack(stacked))
    np.testing.assert_allclose(result.iou, iou.mean(0))
    np.testing.assert_allclose(result.dice, dice.mean(0))
    assert (result.mean_iou, result.mean_dice) == (pytest.approx(iou.mean()), pytest.approx(dice.mean()))


def test_smoothed_rewards_absent_classes_and_mean_iou_does_not_know_them() -> None:
    """Two classes, the second nowhere: IoU 1 and, as the formula is written, Dice 2; the first is half right."""
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[0, 0, 0, 0]]))
    result = smoothed(matrix.counts[None])
    assert result.iou == pytest.approx((0.5, 1, 0), abs=1e-4)
    assert result.dice == pytest.approx((2 / 3, 2, 0), abs=1e-4)
    assert matrix.compute().mean_iou == 0.5


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 2), (2, 2, 2)])
def test_smoothed_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="counts"):
        smoothed(np.zeros(shape, np.int64))


def test_overlapping_classes_are_counted_a_channel_at_a_time() -> None:
    """Widened as a whole, the truth of a photograph of 12 megapixels and 21 classes would take two gigabytes."""
    generator = torch.Generator().manual_seed(4)
    truth = (torch.rand(2, 16, 40, 64, generator=generator) < 0.3).to(torch.uint8)
    predicted = torch.rand(truth.shape, generator=generator) < 0.5
    truth[:, :, :3] = 255
    counts = OverlapCounts(16)
    with Allocations() as made:
        counts.update(predicted, truth)
    assert 0 < made.largest <= 8 * 2 * 40 * 64
    yes, counted = (truth == 1).numpy(), (truth != 255).numpy()
    by_hand = [(array & counted).sum(axis=(0, 2, 3)) for array in (yes & predicted.numpy(), yes, predicted.numpy())]
    np.testing.assert_array_equal(counts.counts, by_hand)
    assert counts.decisions == counted.sum()


def test_a_truth_that_does_not_fit_leaves_the_counts_as_they_were() -> None:
    counts, truth = OverlapCounts(2), torch.zeros(2, 3, 3, dtype=torch.uint8)
    truth[1, 0, 0] = 7
    with pytest.raises(MaskError, match="got up to 7"):
        counts.update(torch.ones(2, 3, 3, dtype=torch.bool), truth)
    assert not counts.counts.any()
    assert counts.decisions == 0
