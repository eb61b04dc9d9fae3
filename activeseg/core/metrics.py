"""Segmentation metrics of a whole dataset: counts first, then IoU, Dice and accuracy from their sums.

Classes that exclude each other are counted in a `ConfusionMatrix`, classes that overlap in `OverlapCounts`. Of either,
all that IoU and Dice need are the counts (3, C) int64 of an image: for each class its hits (pixels that are predicted
as it and are it), its pixels in the truth, and the pixels predicted as it. Stacked over images they are (N, 3, C).

mIoU is the one of the FCN paper (Long et al. 2015): intersection and union summed over all images first, then one IoU
per class, then their mean over the classes that occur in the truth. It is not the mean of per-image values, and nothing
is smoothed. `smoothed` is another metric with the same name in the source documents, and never part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import ConfigError, MaskError
from activeseg.records import ClassMetric

Labels = Tensor | npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
"""Hits, truth pixels and predicted pixels by class: (3, C), or (N, 3, C) for N images."""

SMOOTHING = 1e-5
"""The s of the smoothed metrics."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Dataset-level figures in 0..1; NaN where the truth holds no pixel of the class (or, for the first two, no pixel).

    mean_iou: mean of iou over the classes that occur in the truth.
    pixel_accuracy: right pixels / counted pixels; where classes overlap, right (pixel, class) decisions / all of them.
    iou: per class TP / (TP + FP + FN) = hits / (truth + predicted - hits).
    dice: per class 2 TP / (2 TP + FP + FN).
    accuracy: per class TP / (TP + FN).
    truth_pixels: per class TP + FN.
    """

    mean_iou: float
    pixel_accuracy: float
    iou: tuple[float, ...]
    dice: tuple[float, ...]
    accuracy: tuple[float, ...]
    truth_pixels: tuple[int, ...]

    @property
    def mean_dice(self) -> float:
        """Mean of dice over the classes that occur in the truth."""
        return float(mean_present(np.asarray(self.dice)))

    def by_class(self, label_set: LabelSet) -> tuple[ClassMetric, ...]:
        """One record per network channel of `label_set`, NaN as None. Raises ConfigError where the counts differ."""
        if len(self.iou) != label_set.num_classes:
            raise ConfigError(f"label_set has {label_set.num_classes} channels; these metrics have {len(self.iou)}")
        return tuple(
            ClassMetric(
                class_index=index,
                name=label_set.names[index],
                iou=_none_if_nan(self.iou[channel]),
                dice=_none_if_nan(self.dice[channel]),
                accuracy=_none_if_nan(self.accuracy[channel]),
                truth_pixels=self.truth_pixels[channel],
            )
            for channel, index in enumerate(label_set.channels)
        )


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over a dataset; keeps sums, never masks.

    num_classes: C; labels are 0..C-1.
    ignore_index: truth value that is not counted, inside or outside 0..C-1, or None. UNLABELED is never counted either.
    matrix: (C, C) int64 on the CPU, rows = truth, columns = prediction.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        if not 1 <= num_classes <= UNLABELED:
            raise ConfigError(f"num_classes: expected 1 to {UNLABELED}; got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Labels, truth: Labels) -> None:
        """Count one or many masks: tensors or arrays of whole numbers, both of one shape, on any device.

        Raises MaskError where shapes differ, values are not whole numbers or a counted pixel holds no class.
        """
        # int64 before anything else: the product below overflows uint8, and comparisons wrap in narrow types.
        predicted, true = _widened("prediction", prediction), _widened("truth", truth)
        if predicted.shape != true.shape:
            raise MaskError(
                f"prediction {tuple(predicted.shape)} and truth {tuple(true.shape)} must have one shape; "
                "take the argmax of logits and resize to the truth's size first"
            )
        counted = true != UNLABELED
        if self.ignore_index is not None:
            counted &= true != self.ignore_index
        predicted, true = predicted.to(true.device)[counted], true[counted]
        self._check_range("truth", true)
        self._check_range("prediction", predicted)
        pairs = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.matrix += pairs.reshape(self.num_classes, self.num_classes).cpu()

    @property
    def counts(self) -> Counts:
        """Hits, truth pixels and predicted pixels, (3, C) int64."""
        matrix: npt.NDArray[np.int64] = self.matrix.numpy()
        return np.stack([np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)])

    def compute(self) -> Metrics:
        """The metrics of everything counted so far."""
        hits, truth, _ = self.counts
        return _metrics(self.counts, right=int(hits.sum()), decisions=int(truth.sum()))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The counts of both. Raises ConfigError where they count different things."""
        if (self.num_classes, self.ignore_index) != (other.num_classes, other.ignore_index):
            raise ConfigError(
                f"cannot add confusion matrices of {self.num_classes} classes ignoring {self.ignore_index} "
                f"and {other.num_classes} ignoring {other.ignore_index}"
            )
        total = ConfusionMatrix(self.num_classes, self.ignore_index)
        total.matrix = self.matrix + other.matrix
        return total

    def _check_range(self, name: str, labels: Tensor) -> None:
        unknown = np.unique(labels[(labels < 0) | (labels >= self.num_classes)].cpu())
        if unknown.size:
            raise MaskError(
                f"{name}: expected classes 0..{self.num_classes - 1}, ignored {self.ignore_index} or {UNLABELED}; "
                f"got {unknown[:5].tolist()}"
            )


class OverlapCounts:
    """The counterpart of ConfusionMatrix for classes that overlap: each class is a yes/no question of its own.

    num_classes: C. counts: (3, C) int64 hits, truth pixels, predicted pixels. decisions: counted (pixel, class) pairs.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= UNLABELED:
            raise ConfigError(f"num_classes: expected 1 to {UNLABELED}; got {num_classes}")
        self.num_classes = num_classes
        self.counts: Counts = np.zeros((3, num_classes), np.int64)
        self.decisions = 0

    def update(self, prediction: Labels, truth: Labels) -> None:
        """Count one image, (C, H, W), or many, (N, C, H, W).

        prediction: bool. truth: whole numbers 0 or 1, UNLABELED where a pixel is not counted; as LabelSet.to_channels.
        Raises MaskError where shapes differ or values are others.
        """
        predicted = torch.as_tensor(prediction)
        if predicted.dtype != torch.bool:
            raise MaskError(f"prediction: expected bool, p > 0.5 of each class; got {predicted.dtype}")
        shape = tuple(predicted.shape)
        if shape != tuple(truth.shape) or len(shape) not in (3, 4) or shape[-3] != self.num_classes:
            raise MaskError(
                f"prediction {shape} and truth {tuple(truth.shape)}: expected one shape ([N, ]{self.num_classes}, H, W)"
            )
        # Channel by channel: the truth of all, widened, would need eight times its memory.
        channels = range(self.num_classes)
        columns = [_answers(predicted[..., c, :, :], _widened("truth", truth[..., c, :, :])) for c in channels]
        *counts, decisions = np.array(columns, np.int64).T
        self.counts = self.counts + np.stack(counts)
        self.decisions += int(decisions.sum())

    def compute(self) -> Metrics:
        """The metrics of everything counted so far."""
        hits, truth, predicted = self.counts
        wrong = int((truth + predicted - 2 * hits).sum())
        return _metrics(self.counts, right=self.decisions - wrong, decisions=self.decisions)

    def __add__(self, other: OverlapCounts) -> OverlapCounts:
        """The counts of both. Raises ConfigError where they count different numbers of classes."""
        if self.num_classes != other.num_classes:
            raise ConfigError(f"cannot add counts of {self.num_classes} classes and of {other.num_classes}")
        total = OverlapCounts(self.num_classes)
        total.counts, total.decisions = self.counts + other.counts, self.decisions + other.decisions
        return total


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The source documents' IoU and Dice per class, and their means over all classes; see `smoothed`."""

    iou: tuple[float, ...]
    dice: tuple[float, ...]
    mean_iou: float
    mean_dice: float


def smoothed(counts: Counts) -> Smoothed:
    """IoU = (I + s) / (U + s) and Dice = 2 (I + s) / (areas + s) of each image, then the mean over images; s = 1e-5.

    counts: (N, 3, C); one image that is the sum of all gives the documents' form over the set. A class in neither the
    truth nor the prediction of an image has IoU 1 there and, the formula taken as it is written, Dice 2: rare classes
    look better the less often they occur, and Dice may exceed 1. Raises ConfigError for another shape or no image.
    """
    if counts.ndim != 3 or counts.shape[1] != 3 or not len(counts):
        raise ConfigError(f"counts: expected (N, 3, C) with N >= 1; got {counts.shape}")
    hits, truth, predicted = counts.transpose(1, 0, 2).astype(np.float64)
    areas = truth + predicted
    iou = ((hits + SMOOTHING) / (areas - hits + SMOOTHING)).mean(axis=0)
    dice = (2 * (hits + SMOOTHING) / (areas + SMOOTHING)).mean(axis=0)
    return Smoothed(tuple(iou.tolist()), tuple(dice.tolist()), float(iou.mean()), float(dice.mean()))


def class_iou(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(..., 3, C) -> (..., C) IoU; NaN where the truth has no pixel of the class."""
    iou: npt.NDArray[np.float64] = _ratios(counts)[0]
    return iou


def mean_present(figures: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(..., C) figures of classes -> (...) mean over those that are not NaN; NaN where all are."""
    present = (~np.isnan(figures)).sum(axis=-1)
    mean: npt.NDArray[np.float64] = np.nansum(figures, axis=-1) / np.where(present > 0, present, np.nan)
    return mean


def _metrics(counts: Counts, *, right: int, decisions: int) -> Metrics:
    iou, dice, accuracy = _ratios(counts)
    return Metrics(
        mean_iou=float(mean_present(iou)),
        pixel_accuracy=right / decisions if decisions else math.nan,
        iou=tuple(iou.tolist()),
        dice=tuple(dice.tolist()),
        accuracy=tuple(accuracy.tolist()),
        truth_pixels=tuple(counts[1].tolist()),
    )


def _ratios(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(..., 3, C) -> IoU, Dice and accuracy, each (..., C), NaN where the truth has none of the class."""
    hits, truth, predicted = np.moveaxis(counts, -2, 0)
    present = np.where(truth > 0, truth, np.nan)  # NaN spreads through the three divisions
    return np.stack([hits / (present + predicted - hits), 2 * hits / (present + predicted), hits / present])


def _answers(predicted: Tensor, true: Tensor) -> tuple[int, int, int, int]:
    """Hits, truth pixels, predicted pixels and counted pixels of one channel: predicted bool, true int64 of its shape."""
    predicted, counted, yes = predicted.to(true.device), true != UNLABELED, true == 1
    if not (yes | (true == 0) | ~counted).all():
        raise MaskError(f"truth: expected 0, 1 or {UNLABELED}; got up to {int(true.max())}")
    kinds = (predicted & yes, yes, predicted & counted, counted)
    hits, truths, predictions, decisions = (int(kind.sum()) for kind in kinds)
    return hits, truths, predictions, decisions


def _widened(name: str, labels: Labels) -> Tensor:
    """Whole numbers as int64 on their device. Raises MaskError for any other type."""
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind in "iu":
            return torch.from_numpy(np.array(labels, dtype=np.int64))  # a copy: torch warns of read-only arrays
    elif not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        return labels.long()
    raise MaskError(f"{name}: expected whole numbers; got {labels.dtype}")


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
